// The live connections.
import { html, signal, useEffect, useRef, useState } from './html.js';
import { ask, can } from './api.js';
import { shown, snapshot, watchPairs } from './live.js';
import { t } from './words.js';
import { count, rate, size, span, speedOf, when } from './format.js';
import { Badge, Confirm, Empty, say } from './ui.js';
import { Table } from './table.js';
import { clientOf } from './search.js';

// What is asked for stays while other views are looked at.
const search = signal({ text: '', service: '', key: '' });
const order = signal({ by: 'rate', down: true });

const orders = {
	rate: { by: 'rate', down: true },
	age: { by: 'age', down: false },
	oldest: { by: 'age', down: true },
	received: { by: 'received', down: true },
	sent: { by: 'sent', down: true },
	client: { by: 'client', down: false },
	service: { by: 'service', down: false },
};

const numeric = new Set(['rate', 'sentRate', 'receivedRate', 'sent', 'received', 'age']);
const most = 500; // choices in a list: beyond that, words find them

export function Connections() {
	const range = useRef({ from: 0, to: 60 });
	const [held, setHeld] = useState(false);
	const [ending, setEnding] = useState(null);
	const [endingAll, setEndingAll] = useState(null);
	const asked = { search: search.value, sort: order.value.by, down: order.value.down, held };
	const tell = () => watchPairs({ ...asked, from: Math.max(0, range.current.from - 20), to: range.current.to + 30 });
	useEffect(tell, [search.value, order.value, held]);
	useEffect(() => () => watchPairs(null), []);
	const onRange = (from, to) => {
		range.current = { from, to };
		tell();
	};

	const snap = snapshot.value;
	const got = shown.value; // which may still be of what was asked before
	const current = got !== null && ['text', 'service', 'key'].every((field) => got.search[field] === search.value[field]);
	const ends = can('DELETE /api/v1/pairs/{}');
	const endsMany = can('DELETE /api/v1/pairs');
	const proxy = snap?.role === 'proxy';
	const services = [...new Set(snap?.services.map((s) => s.public))].slice(0, most);
	const keys = proxy ? [...new Set(snap.keys.filter((k) => k.connections > 0).map((k) => k.key))].slice(0, most) : [];
	const choose = (field) => (e) => (search.value = { ...search.value, [field]: e.currentTarget.value });
	const filtered = search.value.text.trim() !== '' || search.value.service !== '' || search.value.key !== '';

	// Only what the process can find too can be ended as one: words cannot.
	const client = clientOf(search.value);
	const which = { service: search.value.service, key: search.value.key, client };
	const canEndAll = (client !== '' || search.value.text.trim() === '') && Object.values(which).some(Boolean);
	const whatAll = [which.client && t('conn.ofClient', { client }), which.service && t('conn.ofService', which), which.key && t('conn.ofKey', which)].filter(Boolean).join(t('app.comma'));

	const onSort = (by) => {
		const was = order.value;
		order.value = was.by === by ? { by, down: !was.down } : { by, down: numeric.has(by) && by !== 'age' };
	};
	const columns = [
		{ id: 'client', head: t('conn.client'), sort: true, header: true, cell: (p) => html`<span class="cut" title=${p.client}>${p.client}</span><span class="narrow sub">${p.service}${p.key ? ' · ' + p.key : ''}</span>` },
		{ id: 'service', head: t('conn.service'), sort: true, cls: 'wide', cell: (p) => html`<span class="cut" title=${p.target}>${p.service}</span>` },
		proxy && { id: 'key', head: t('conn.key'), sort: true, cls: 'wide', cell: (p) => html`<span class="cut">${p.key || '–'}</span>` },
		!proxy && { id: 'target', head: t('conn.target'), sort: true, cls: 'wide', cell: (p) => html`<span class="cut">${p.target}</span>` },
		{ id: 'sentRate', head: t('conn.sentRate'), title: t('conn.sentTitle'), sort: true, cls: 'num wide', cell: (p) => rate(p.sentRate) },
		{ id: 'receivedRate', head: t('conn.receivedRate'), title: t('conn.receivedTitle'), sort: true, cls: 'num wide', cell: (p) => rate(p.receivedRate) },
		{ id: 'rate', head: t('conn.rate'), sort: true, cls: 'num narrow', cell: (p) => html`<span class="line">↑ ${rate(p.sentRate)}</span><span class="line">↓ ${rate(p.receivedRate)}</span>` },
		{ id: 'sent', head: t('conn.sent'), title: t('conn.sentTitle'), sort: true, cls: 'num wide', cell: (p) => size(p.sent) },
		{ id: 'received', head: t('conn.received'), title: t('conn.receivedTitle'), sort: true, cls: 'num wide', cell: (p) => size(p.received) },
		{ id: 'age', head: t('conn.age'), sort: true, cls: 'num wide', cell: (p) => html`<span title=${when(p.at)}>${span((Date.now() - p.at) / 1000)}</span>` },
		{ id: 'state', head: t('conn.state'), sort: true, cls: 'wide', cell: (p) => html`<${Badge} is=${p.state} />` },
		ends && { id: 'do', head: t('app.actions'), hidden: true, cls: 'do', cell: (p) => html`<button type="button" class="small" disabled=${p.ended} aria-label=${t('conn.endOne', p)} onClick=${() => setEnding(p)}>${t('conn.end')}</button>` },
	].filter(Boolean);
	const named = Object.keys(orders).find((name) => orders[name].by === order.value.by && orders[name].down === order.value.down) || '';

	return html`<div class="tools" role="search">
			<label class="grow"><span>${t('conn.search')}</span><input type="search" id="search" value=${search.value.text} placeholder=${t('conn.searchHint')} spellcheck="false" autocapitalize="off" onInput=${choose('text')} /></label>
			<label><span>${t('conn.service')}</span><select value=${search.value.service} onChange=${choose('service')}>
				<option value="">${t('conn.allServices')}</option>
				${search.value.service && !services.includes(search.value.service) && html`<option value=${search.value.service}>${search.value.service}</option>`}
				${services.map((s) => html`<option key=${s} value=${s}>${s}</option>`)}
			</select></label>
			${proxy && html`<label><span>${t('conn.key')}</span><select value=${search.value.key} onChange=${choose('key')}>
				<option value="">${t('conn.allKeys')}</option>
				${search.value.key && !keys.includes(search.value.key) && html`<option value=${search.value.key}>${search.value.key}</option>`}
				${keys.map((k) => html`<option key=${k} value=${k}>${k}</option>`)}
			</select></label>`}
			<label><span>${t('conn.sort')}</span><select value=${named} onChange=${(e) => (order.value = orders[e.currentTarget.value] || order.value)}>
				${!named && html`<option value="">${t('conn.sort.other')}</option>`}
				${Object.keys(orders).map((name) => html`<option key=${name} value=${name}>${t('conn.sort.' + name)}</option>`)}
			</select></label>
		</div>
		<div class="sums">
			<p>${got && html`<strong>${got.live < got.all || filtered ? t('conn.shown', { n: count(got.live), all: count(got.all) }) : got.live === 1 ? t('conn.one') : t('conn.all', { n: count(got.live) })}</strong>
				<span class="figure">↑ ${speedOf(got.sentRate)}</span> <span class="figure">↓ ${speedOf(got.receivedRate)}</span>`}
				${held && html`<span class="dim wide">${t('conn.held')}</span>`}</p>
			${endsMany && filtered && current && got.live > 0 && html`<p>${canEndAll
				? html`<button type="button" class="small" id="end-all" onClick=${() => setEndingAll({ ...which, n: got.live, what: whatAll })}>${t('conn.endAll', { n: count(got.live) })}</button>`
				: html`<span class="dim">${t('conn.endAllWhich')}</span>`}</p>`}
		</div>
		${!got ? html`<p class="dim">${t('app.loading')}</p>`
			: got.matched === 0 ? html`<${Empty}><p>${t(filtered ? 'conn.noMatch' : 'conn.none')}</p>${filtered && html`<button type="button" class="small" onClick=${() => (search.value = { text: '', service: '', key: '' })}>${t('conn.clear')}</button>`}</>`
			: html`<${Table} id="pairs" label=${t('view.connections')} columns=${columns} count=${got.matched} row=${(i) => got.rows[i - got.from]} keyOf=${(p) => p.id}
				sort=${order.value} onSort=${onSort} onRange=${onRange} onHold=${setHeld} mark=${(p) => (p.ended ? 'ended' : '')} height=${matchMedia('(max-width: 720px)').matches ? 58 : 37} />`}
		${ending && html`<${Confirm} title=${t('conn.endTitle')} button=${t('conn.endButton')} danger=${true} onClose=${() => setEnding(null)} act=${() => endOne(ending)}>
			<p class="subject">${ending.client} → ${ending.service}</p><p>${t('conn.endText')}</p></>`}
		${endingAll && html`<${Confirm} title=${t('conn.endAllTitle', { n: count(endingAll.n) })} button=${t('conn.endAll', { n: count(endingAll.n) }).replace(/…+$/, '')} danger=${true} onClose=${() => setEndingAll(null)} act=${() => endAll(endingAll)}>
			<p>${t('conn.endAllText', endingAll)}</p></>`}`;
}

async function endOne(pair) {
	try {
		await ask('DELETE', '/api/v1/pairs/' + encodeURIComponent(pair.id));
		say(t('conn.ended', pair));
	} catch (err) {
		if (err.status !== 404) throw err;
		say(t('conn.gone', pair));
	}
}

async function endAll({ service, key, client }) {
	const which = new URLSearchParams();
	for (const [name, value] of Object.entries({ service, key, client })) if (value) which.set(name, value);
	const done = await ask('DELETE', '/api/v1/pairs?' + which);
	say(t('conn.endedAll', { n: count(done.ended) }));
}

