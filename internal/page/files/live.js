// What the process tells every second. A worker listens to it, so that ten thousand connections that move never hold up the page.
import { signal, batch } from './lib/signals.js';
import { session, signedOut } from './api.js';

// snapshot is the newest status, without connections; null before the first.
export const snapshot = signal(null);

// speed is how many bytes a second went each way between the last two snapshots; null before there are two.
export const speed = signal(null);

// lost is since when the process is silent, with what is known of the cause; null while it speaks.
export const lost = signal(null);

// shown is the part of the list of connections that is asked for: {rows, from, matched, all, sums}.
export const shown = signal(null);

// otherVersion is the version of a process that took the place of the one that the page came from.
export const otherVersion = signal('');

let worker = null;
let last = null; // totals of the snapshot before
let version = '';
const listeners = new Set(); // who wants to hear of each snapshot

// onSnapshot calls f with each snapshot until the returned function is called.
export function onSnapshot(f) {
	listeners.add(f);
	return () => listeners.delete(f);
}

// totals adds up what all keys carried.
export function totals(snap) {
	const sum = { connections: 0, total: 0, sent: 0, received: 0, refused: 0 };
	for (const k of snap.keys) for (const field in sum) sum[field] += k[field];
	return sum;
}

function take(message) {
	switch (message.kind) {
		case 'status':
			batch(() => {
				const snap = message.snap;
				const now = { at: message.at, up: snap.uptime_seconds, ...totals(snap) };
				if (last && now.up === last.up) {
					// the same again
				} else if (last && now.up > last.up && now.sent >= last.sent && now.received >= last.received) {
					const seconds = Math.max(now.up - last.up, 0.001);
					speed.value = { sent: (now.sent - last.sent) / seconds, received: (now.received - last.received) / seconds };
				} else {
					speed.value = null;
				}
				last = now;
				version ||= snap.version;
				if (snap.version !== version) otherVersion.value = snap.version;
				snapshot.value = snap;
				lost.value = null;
			});
			for (const f of listeners) f(snapshot.value, speed.value);
			break;
		case 'pairs':
			shown.value = message;
			break;
		case 'lost':
			if (!lost.value) lost.value = { since: message.since, why: message.why };
			else if (lost.value.why !== message.why) lost.value = { ...lost.value, why: message.why };
			last = null;
			break;
		case 'signed-out':
			signedOut();
			break;
	}
}

// start begins to listen; stop ends it and forgets what was heard.
export function start() {
	if (worker) return;
	worker = new Worker('feed.js', { type: 'module' });
	worker.onmessage = (event) => take(event.data);
	worker.postMessage({ kind: 'open', session: session() });
	rest(); // a tab may be opened where nobody sees it
}

export function stop() {
	if (!worker) return;
	clearTimeout(hiding);
	worker.terminate();
	worker = null;
	last = null;
	batch(() => {
		snapshot.value = speed.value = lost.value = shown.value = null;
	});
}

// watchPairs has the worker tell of connections: those that match, in an order, and of them the rows from…to. null ends it.
export function watchPairs(view) {
	worker?.postMessage({ kind: 'view', view });
	if (view === null) shown.value = null;
}

// A page that nobody sees costs the process nothing, and takes no place from those that are seen.
const hiddenFor = 30_000;
let hiding = 0;
function rest() {
	clearTimeout(hiding);
	if (document.hidden) hiding = setTimeout(() => worker?.postMessage({ kind: 'rest' }), hiddenFor);
}
document.addEventListener('visibilitychange', () => {
	rest();
	if (!document.hidden) worker?.postMessage({ kind: 'open', session: session() });
});
