// The worker behind live.js: it listens to the process, keeps the connections, and tells the page what it shows of them.
import { follow, silence } from './http.js';
import { matcher } from './search.js';

let session = '';
let source = null; // what ends the stream that is listened to
let withPairs = false;
let resting = false; // nobody looks at the page
let retry = 0;
let attempts = 0;
let heard = Date.now(); // when the process spoke last
let told = false; // that it is lost

const delays = [500, 1_000, 2_000, 3_000, 5_000];

async function open() {
	close();
	if (resting) return;
	heardAtOpen = Date.now();
	const mine = new AbortController();
	source = mine;
	let problem = null;
	try {
		await follow(withPairs ? '/api/v1/stream?pairs=true' : '/api/v1/stream', session, mine.signal, { heard: alive, event: take });
	} catch (err) {
		problem = err;
	}
	if (source === mine) again(problem);
}

function take(name, data) {
	if (name === 'status') {
		postMessage({ kind: 'status', at: Date.now(), snap: JSON.parse(data) });
	} else if (name === 'pairs') {
		const whole = takePairs(JSON.parse(data));
		// At a slow line the parts of the first list take a while: what has come is shown.
		if (whole || batch.reset && performance.now() - Math.max(before, showedAt) > 500) show();
	}
}

let heardAtOpen = 0;

function close() {
	clearTimeout(retry);
	retry = 0;
	source?.abort();
	source = null;
}

function alive() {
	heard = Date.now();
	attempts = 0;
	told = false;
}

// again opens the stream anew after a while. problem is why it has not begun; null if it has ended.
function again(problem) {
	close();
	if (problem?.status === 401) {
		postMessage({ kind: 'signed-out' });
		return;
	}
	retry = setTimeout(open, delays[Math.min(attempts++, delays.length - 1)]);
	const why = problem?.status ? problem.message : ''; // or nobody answers, and there is no more to say
	if (attempts > 1 || why || Date.now() - heard > silence) tellLost(why);
}

function tellLost(why) {
	told = true;
	postMessage({ kind: 'lost', since: heard, why });
}

setInterval(() => {
	if (!source || resting) return;
	if (Date.now() - Math.max(heard, heardAtOpen) > silence) { // a connection whose other end is gone says nothing
		again(null);
	} else if (!told && Date.now() - heard > silence) {
		tellLost('');
	}
}, 1_000);

// The connections.

const rows = new Map(); // by id
let order = []; // of what matches
let held = false; // the order stays as it is: somebody points at a row
let settled = false; // whether there was an order yet that knew how fast each is
let view = null; // what the page shows
let before = 0; // when the last change was told
let paced = false; // whether there was an earlier one to compare it with
let sums = null;
let showedAt = 0; // when the list was put in order last

let batch = null; // changes of one moment, which may come in several events: how long after those before, and whom they told of

// takePairs takes what one event tells of connections, and returns whether that is all of a moment.
function takePairs({ reset, changed, gone, more }) {
	if (reset || !batch) {
		const now = performance.now();
		batch = { seconds: before && !reset ? Math.max((now - before) / 1000, 0.2) : 0, reset, seen: new Set() };
		before = now;
		if (reset) paced = false;
		if (!held) for (const row of rows.values()) if (row.ended) rows.delete(row.id);
	}
	const { seconds, seen } = batch;
	for (const pair of changed) {
		seen.add(pair.id);
		const row = rows.get(pair.id);
		if (!row) {
			rows.set(pair.id, { ...pair, at: Date.parse(pair.since), sentRate: 0, receivedRate: 0, rate: 0, ended: false });
			continue;
		}
		row.sentRate = seconds && (pair.sent - row.sent) / seconds;
		row.receivedRate = seconds && (pair.received - row.received) / seconds;
		row.rate = row.sentRate + row.receivedRate;
		Object.assign(row, pair);
	}
	const end = (row) => {
		if (held) Object.assign(row, { ended: true, state: 'ended', sentRate: 0, receivedRate: 0, rate: 0 });
		else rows.delete(row.id);
	};
	for (const id of gone || []) {
		const row = rows.get(id);
		if (row) end(row);
	}
	if (more) return false;
	for (const row of rows.values()) {
		if (seen.has(row.id)) continue;
		if (batch.reset) end(row);
		else row.sentRate = row.receivedRate = row.rate = 0;
	}
	paced = seconds > 0;
	batch = null;
	return true;
}

const compare = {
	client: (a, b) => text(a.client, b.client),
	service: (a, b) => text(a.service, b.service),
	target: (a, b) => text(a.target, b.target),
	key: (a, b) => text(a.key || '', b.key || ''),
	state: (a, b) => text(a.state, b.state),
	sentRate: (a, b) => a.sentRate - b.sentRate,
	receivedRate: (a, b) => a.receivedRate - b.receivedRate,
	rate: (a, b) => a.rate - b.rate,
	sent: (a, b) => a.sent - b.sent,
	received: (a, b) => a.received - b.received,
	age: (a, b) => b.at - a.at,
};

function text(a, b) {
	return a < b ? -1 : a > b ? 1 : 0;
}

// arrange finds what matches, and puts it in order.
function arrange() {
	const matches = matcher(view.search);
	sums = { sentRate: 0, receivedRate: 0, live: 0, all: 0 };
	const found = [];
	for (const row of rows.values()) {
		if (!row.ended) sums.all++;
		if (!matches(row)) continue;
		sums.sentRate += row.sentRate;
		sums.receivedRate += row.receivedRate;
		if (!row.ended) sums.live++;
		found.push(row);
	}
	if (held && settled) {
		const there = new Set(found.map((row) => row.id));
		const kept = order.filter((id) => there.has(id));
		const known = new Set(kept);
		for (const row of found) if (!known.has(row.id)) kept.push(row.id); // new ones come last
		order = kept;
		return;
	}
	const by = compare[view.sort] || compare.rate;
	const sign = view.down ? -1 : 1;
	found.sort((a, b) => sign * by(a, b) || b.at - a.at || text(a.id, b.id));
	order = found.map((row) => row.id);
	settled = paced;
}

function show() {
	if (!view || !before) return;
	arrange();
	showRows();
	showedAt = performance.now();
}

function showRows() {
	const from = Math.max(0, Math.min(view.from, order.length));
	const to = Math.min(order.length, view.to);
	const part = [];
	for (let i = from; i < to; i++) part.push(rows.get(order[i]));
	postMessage({ kind: 'pairs', from, rows: part, matched: order.length, all: sums.all, live: sums.live, sentRate: paced ? sums.sentRate : null, receivedRate: paced ? sums.receivedRate : null, search: view.search });
}

function setView(next) {
	const had = view;
	view = next;
	if (Boolean(next) !== withPairs) {
		withPairs = Boolean(next);
		rows.clear();
		order = [];
		before = 0;
		batch = null;
		held = settled = false;
		open();
		return;
	}
	if (!next || !before) return;
	const same = had && had.sort === next.sort && had.down === next.down && JSON.stringify(had.search) === JSON.stringify(next.search);
	if (same && next.held === held) {
		showRows(); // somebody scrolls
		return;
	}
	held = same && next.held;
	show();
	held = next.held;
}

onmessage = ({ data }) => {
	switch (data.kind) {
		case 'open':
			session = data.session;
			if (source && !resting) break;
			resting = false;
			open();
			break;
		case 'rest':
			resting = true;
			close();
			break;
		case 'view':
			setView(data.view);
			break;
	}
};
