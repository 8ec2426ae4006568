// The first view: what is wrong comes first, then what there is.
import { html, signal, useEffect, useMemo, useState } from './html.js';
import { ask, can } from './api.js';
import { onSnapshot, snapshot, speed, totals } from './live.js';
import { t } from './words.js';
import { count, since, size, span, speedOf, state, until } from './format.js';
import { Badge, Command, Confirm, Empty, failed, say, whileSeen } from './ui.js';
import { Table } from './table.js';
import { Chart } from './chart.js';

const most = 5; // of one kind, among what is wrong

// Seconds: how long before its end a key or a certificate is named, and how long the renewal of a certificate may take. `status` has the same.
const soon = 7 * 86400;
const renewalTime = 3600;

// endsSoon is whether a certificate is valid, and ends soon without a newer one under way.
function endsSoon(c) {
	if (c.state !== 'valid' || c.error || !c.not_after || until(c.not_after) > soon) return false;
	return !c.renew_at || until(c.renew_at) <= -renewalTime;
}

// problems lists what is wrong with a process, the worst first: [{bad, what, why, hint}].
export function problems(snap) {
	const list = [];
	const add = (bad, what, why, hint) => list.push({ bad, what, why, hint });
	if (snap.stopping) add(false, t('over.stopping'), '', t('over.stoppingHint'));
	for (const fault of snap.faults || []) add(true, fault);
	if (snap.unstored?.removed?.length) add(true, t('over.unstored', { keys: snap.unstored.removed.join(', ') }), snap.unstored.error, t('over.unstoredHint'));
	if (snap.unstored?.edited?.length) add(true, t('over.unstoredEdit', { keys: snap.unstored.edited.join(', ') }), snap.unstored.error, t('over.unstoredEditHint'));
	for (const p of snap.pressure) {
		const who = [p.largest.key, p.largest.service, p.largest.client].filter(Boolean).join(', ');
		const why = [who && t('over.largest', { who }), Date.parse(p.since) > 0 && t('over.since', { span: since(p.since) })].filter(Boolean).join(', ');
		add(true, t('over.pressure', { what: p.what, used: count(p.used), limit: count(p.limit) }), why, p.hint);
	}
	if (snap.role === 'bridge') {
		for (const l of snap.links.filter((l) => l.state === 'down')) add(true, t('over.link', { remote: l.remote }), l.reason, t('over.linkHint'));
	}
	if (snap.reload?.error) add(true, t('over.reload', { span: since(snap.reload.at) }), snap.reload.error, t('over.reloadHint'));
	for (const c of (snap.certificates || []).filter((c) => c.state === 'failed' || c.error)) {
		const left = until(c.retry_at);
		add(c.state === 'failed', t('over.certificate', { host: c.host }), c.error, [c.hint, left > 0 && t('over.retryAt', { span: span(left) })].filter(Boolean).join('\n'));
	}
	const over = (snap.keys || []).filter((k) => k.expired);
	for (const k of over.slice(0, most)) add(true, t('over.keyExpired', { key: k.key, span: since(k.expires) }), '', t('over.keyExpiredHint', { key: k.key }));
	if (over.length > most) add(true, t('over.more', { n: count(over.length - most) }), t('over.keysExpired', { n: count(over.length) }));
	const ending = (snap.keys || []).filter((k) => k.expires && !k.expired && until(k.expires) <= soon).sort((a, b) => until(a.expires) - until(b.expires));
	for (const k of ending.slice(0, most)) add(false, t('over.keyEnds', { key: k.key, span: span(until(k.expires)) }), '', t('over.keyEndsHint', { key: k.key }));
	if (ending.length > most) add(false, t('over.more', { n: count(ending.length - most) }), t('over.keysEnd', { n: count(ending.length) }));
	for (const c of (snap.certificates || []).filter(endsSoon)) add(false, t('over.certificateEnds', { host: c.host, span: span(until(c.not_after)) }), '', t(c.renew_at ? 'over.certificateLateHint' : 'over.certificateEndsHint', { from: c.from }));
	const log = snap.access_log;
	if (log && (log.lost > 0 || log.error)) add(false, log.file === '-' ? t('over.accessLogOut', { lost: count(log.lost) }) : t('over.accessLog', { file: log.file, lost: count(log.lost) }), log.error, t('over.accessLogHint'));
	const usage = snap.usage;
	if (usage?.error) add(true, t('over.usage', { file: usage.file }), usage.error, t('over.accessLogHint'));
	if (usage?.put_aside) add(false, t('over.usageAside', { file: usage.put_aside }), usage.damage);
	for (const is of ['denied', 'retrying', 'away']) {
		const down = snap.services.filter((s) => s.state === is);
		for (const s of down.slice(0, most)) add(is !== 'away', t('over.service', { public: s.public, state: state(is) }), s.reason);
		if (down.length > most) add(is !== 'away', t('over.more', { n: count(down.length - most) }), t('over.services', { n: count(down.length), state: state(is) }));
	}
	const deaf = snap.services.filter((s) => s.target_state === 'refused' || s.target_state === 'unreachable');
	for (const s of deaf.slice(0, most)) add(true, t(s.target_state === 'refused' ? 'over.targetRefused' : 'over.targetUnreachable', { public: s.public, target: s.target }), s.target_error, t('over.targetAgo', { span: since(s.target_at) }));
	if (deaf.length > most) add(true, t('over.more', { n: count(deaf.length - most) }), t('over.targets', { n: count(deaf.length) }));
	if (snap.role === 'proxy' && snap.links.length === 0) add(false, t('over.noLinks'), '', t('over.noLinksHint'));
	return list.sort((a, b) => b.bad - a.bad);
}

function Wrong({ snap }) {
	const list = problems(snap);
	return html`<section aria-labelledby="wrong">
		<h2 id="wrong">${t('over.wrong')}</h2>
		${list.length === 0 ? html`<p class="fine">${t('over.fine')}</p>` : html`<ul class="wrong">${list.map((p, i) => html`<li key=${i} class=${p.bad ? 'bad' : 'warn'}>
			<strong>${p.what}</strong>
			${p.why && html`<span class="why">${p.why}</span>`}
			${p.hint && html`<span class="hint">${p.hint}</span>`}
		</li>`)}</ul>`}
	</section>`;
}

function Figures({ snap }) {
	const sum = totals(snap);
	const now = speed.value;
	const figure = (name, title, value, below) => html`<div title=${title}><dt>${name}</dt><dd>${value}<small>${below}</small></dd></div>`;
	return html`<dl class="figures">
		${figure(t('over.connections'), '', count(sum.connections), t('over.inAll', { n: count(sum.total) }) + (sum.refused ? ', ' + t('over.refused', { n: count(sum.refused) }) : ''))}
		${figure('↑ ' + t('over.sent'), t('over.sentHint'), speedOf(now?.sent), t('over.inAll', { n: size(sum.sent) }))}
		${figure('↓ ' + t('over.received'), t('over.receivedHint'), speedOf(now?.received), t('over.inAll', { n: size(sum.received) }))}
	</dl>`;
}

// seen is what the page itself saw since it was opened: the charts of a process that keeps no history.
const seen = signal({ at: [], sent: [], received: [], connections: [] });
const seenMost = 3600;

onSnapshot((snap, now) => {
	if (!now || can('GET /api/v1/history')) return;
	const was = seen.value;
	const push = (list, v) => [...list.slice(-seenMost + 1), v];
	seen.value = { at: push(was.at, Date.now() / 1000), sent: push(was.sent, now.sent), received: push(was.received, now.received), connections: push(was.connections, totals(snap).connections) };
});

const max = (list) => list.reduce((a, b) => Math.max(a, b ?? 0), 0);

function Charts({ snap }) {
	const [kept, setKept] = useState(null);
	const asks = can('GET /api/v1/history');
	useEffect(() => {
		if (!asks) return undefined;
		let over = false;
		const asking = whileSeen(10, async () => {
			try {
				const history = await ask('GET', '/api/v1/history');
				if (!over) setKept(readHistory(history));
			} catch {
				// the page says elsewhere that the process is away; what was there stays
			}
		});
		return () => {
			over = true;
			asking.end();
		};
	}, [asks]);
	const h = asks ? kept : seen.value;
	const traffic = useMemo(() => h && [h.at, h.sent, h.received], [h]);
	const connections = useMemo(() => h && [h.at, h.connections], [h]);
	if (!h || h.at.length < 2) return null;
	// The history may be some seconds old: what is now is what the figures above say.
	const now = speed.value ? speed.value.sent + speed.value.received : null;
	const open = totals(snap).connections;
	const where = asks ? t('over.lastHour') : t('over.sinceOpen');
	return html`<div class="charts">
		<${Chart} title=${t('over.throughput')} says=${`${where}; ${t('over.chartNow', { now: speedOf(now), most: speedOf(max([...h.sent.map((n, i) => n + h.received[i]), now])) })}`}
			data=${traffic} format=${speedOf} series=${[{ name: '↑ ' + t('over.sent'), colour: '--up' }, { name: '↓ ' + t('over.received'), colour: '--down' }]} />
		<${Chart} title=${t('over.connections')} says=${`${where}; ${t('over.chartNow', { now: count(open), most: count(max([...h.connections, open])) })}`}
			data=${connections} format=${count} whole=${true} series=${[{ name: t('over.connections'), colour: '--down' }]} />
	</div>`;
}

// readHistory turns the process's history into columns.
export function readHistory(history) {
	const points = history.points || [];
	const step = history.step_seconds || 10;
	return {
		at: points.map((p) => Date.parse(p.at) / 1000),
		sent: points.map((p) => p.sent / step),
		received: points.map((p) => p.received / step),
		connections: points.map((p) => p.open),
	};
}

const rtt = (ms) => (ms > 0 ? `${ms.toFixed(1)} ms` : '–');

function Links({ snap }) {
	const proxy = snap.role === 'proxy';
	const columns = [
		{ id: 'key', head: t('over.key'), header: true, cell: (l) => html`<span class="cut">${l.key || '–'}</span><span class="narrow sub">${l.remote}</span>` },
		{ id: 'state', head: t('over.state'), cell: (l) => html`<${Badge} is=${l.state} />${l.reason && html`<span class="reason">${l.reason}</span>`}` },
		{ id: 'remote', head: t('over.remote'), cls: 'wide', cell: (l) => html`<span class="cut">${l.remote}${l.via ? ' ' + t('over.via', { via: l.via }) : ''}</span>` },
		{ id: 'bridge', head: t('over.bridge'), cls: 'wide', cell: (l) => html`<span class="cut mono dim" title=${l.bridge}>${l.bridge}</span>` },
		{ id: 'rtt', head: t('over.rtt'), cls: 'num', cell: (l) => rtt(l.rtt_ms) },
		{ id: 'carriers', head: t('over.carriers'), cls: 'num wide', cell: (l) => l.carriers },
		{ id: 'resumes', head: t('over.resumes'), cls: 'num wide', cell: (l) => html`${count(l.resumes)}${l.checksum_errors ? html` <span class="badge bad">${t('over.checksums', { n: count(l.checksum_errors) })}</span>` : ''}` },
		{ id: 'age', head: t('over.age'), cls: 'num wide', cell: (l) => since(l.since) },
	];
	return html`<div>
		<h2 id="links">${t('over.links')} <span class="dim">${count(snap.links.length)}</span></h2>
		${snap.links.length === 0 ? html`<${Empty}>${proxy ? html`<p>${t('over.noLinksYet')}</p><${Command}>reverser bridge TOKEN 9000</>` : html`<p>${t('over.noLinksBridge')}</p>`}</>` :
			html`<${Table} label=${t('over.links')} columns=${columns} count=${snap.links.length} row=${(i) => snap.links[i]} keyOf=${(l) => `${l.key} ${l.bridge} ${l.remote} ${l.since}`} measured=${true} />`}
	</div>`;
}

// isDrained is whether an order lets nobody new in to a service.
export const isDrained = (s) => !!s.drained;
const pathOf = (s) => `/api/v1/services/${encodeURIComponent(s.public)}/drain`;

function Services({ snap }) {
	const [draining, setDraining] = useState(null);
	const proxy = snap.role === 'proxy';
	const drains = proxy && can('POST /api/v1/services/{}/drain'); // users are turned away where they come in
	const undo = async (s) => {
		try {
			await ask('DELETE', pathOf(s));
			say(t('over.undrained', { public: s.public }));
		} catch (err) {
			say(failed(err), true);
		}
	};
	const columns = [
		{ id: 'public', head: t('over.public'), header: true, cell: (s) => html`<span class="cut">${s.public}</span>${s.inspect && html` <span class="badge dim">${t('over.inspected')}</span>`}<span class="narrow sub">${s.target || '–'} · ${t('over.nConnections', { n: count(s.connections) })}</span>${s.reason && html`<span class="narrow sub">${s.reason}</span>`}` },
		{ id: 'state', head: t('over.state'), cell: (s) => html`<${Badge} is=${s.state} />${s.reason && html`<span class="reason wide">${s.reason}</span>`}` },
		{ id: 'target', head: t('over.target'), cls: 'wide', cell: (s) => html`<span class="cut">${s.target || '–'}</span>` },
		proxy && { id: 'key', head: t('over.key'), cls: 'wide', cell: (s) => html`<span class="cut">${s.key}</span>` },
		{ id: 'connections', head: t('over.connections'), cls: 'num wide', cell: (s) => count(s.connections) },
		{ id: 'sent', head: '↑ ' + t('over.sent'), title: t('over.sentHint'), cls: 'num wide', cell: (s) => size(s.sent || 0) },
		{ id: 'received', head: '↓ ' + t('over.received'), title: t('over.receivedHint'), cls: 'num wide', cell: (s) => size(s.received || 0) },
		drains && {
			id: 'do', head: t('app.actions'), hidden: true, cls: 'do',
			cell: (s) => isDrained(s)
				? html`<button type="button" class="small" aria-label=${`${t('over.undrain')}: ${s.public}`} onClick=${() => undo(s)}>${t('over.undrain')}</button>`
				: html`<button type="button" class="small" aria-label=${`${t('over.drain')}: ${s.public}`} onClick=${() => setDraining(s)}>${t('over.drain')}</button>`,
		},
	].filter(Boolean);
	return html`<div>
		<h2 id="services">${t('over.servicesTitle')} <span class="dim">${count(snap.services.length)}</span></h2>
		${snap.services.length === 0 ? html`<${Empty}><p>${t(proxy ? 'over.noServices' : 'over.noServicesBridge')}</p><${Command}>reverser bridge TOKEN 9000</></>` :
			html`<${Table} label=${t('over.servicesTitle')} columns=${columns} count=${snap.services.length} row=${(i) => snap.services[i]} keyOf=${(s) => `${s.public} ${s.key} ${s.target}`} measured=${true} />`}
		${draining && html`<${Confirm} title=${t('over.drainTitle', { public: draining.public })} button=${t('over.drain')} danger=${true} onClose=${() => setDraining(null)}
			act=${async () => {
				await ask('POST', pathOf(draining));
				say(t('over.drained', { public: draining.public }));
			}}><p>${t('over.drainText', { n: count(draining.connections) })}</p></>`}
	</div>`;
}

function Configuration({ snap }) {
	const [busy, setBusy] = useState(false);
	const [done, setDone] = useState(null); // {answer} or {error}
	const reload = async () => {
		setBusy(true);
		setDone(null);
		try {
			const answer = await ask('POST', '/api/v1/reload');
			setDone({ answer });
		} catch (err) {
			setDone({ error: err });
		}
		setBusy(false);
	};
	const r = snap.reload;
	const list = (title, words) => words.length > 0 && html`<h3>${title}</h3><ul>${words.map((w, i) => html`<li key=${i}>${w}</li>`)}</ul>`;
	const a = done?.answer;
	return html`<section aria-labelledby="config">
		<h2 id="config">${t('over.config')}</h2>
		<p>${!r ? t('over.noReload') : r.error ? t('over.reloadRefused', { span: since(r.at) }) : t('over.lastReload', { span: since(r.at) })}
			${' '}<button type="button" class="small" id="reload" disabled=${busy} onClick=${reload}>${busy ? t('over.reloading') : t('over.reloadNow')}</button></p>
		${r?.error && !done?.error && html`<pre class="problem">${r.error}</pre>`}
		<div role="status" aria-live="polite">
			${done?.error && html`<pre class="problem">${done.error.status ? done.error.message : failed(done.error)}</pre>`}
			${a && html`<div class="done"><p>${a.changed.length + a.unconfirmed.length === 0 ? t('over.nothingChanged') : t('over.reloaded')}</p>
				${list(t('over.changed'), a.changed)}${list(t('over.unconfirmed'), a.unconfirmed)}${list(t('over.warnings'), a.warnings)}</div>`}
		</div>
	</section>`;
}

export function Overview() {
	const snap = snapshot.value;
	if (!snap) return html`<p class="dim">${t('app.connecting')}</p>`;
	return html`<${Wrong} snap=${snap} />
		<${Figures} snap=${snap} />
		<${Charts} snap=${snap} />
		<${Services} snap=${snap} />
		<${Links} snap=${snap} />
		${can('POST /api/v1/reload') && html`<${Configuration} snap=${snap} />`}`;
}
