// What was carried over days and months, for each service and key.
import { html, signal, useMemo } from './html.js';
import { ask } from './api.js';
import { snapshot } from './live.js';
import { lang, t } from './words.js';
import { count, size } from './format.js';
import { Empty, Failure, useAsked } from './ui.js';
import { Table } from './table.js';
import { Chart } from './chart.js';

// The process counts by the hour, day and month of UTC. An hour is shown in the reader's time.
const periods = {
	hour: { last: 48, stamp: { hour: '2-digit', minute: '2-digit' }, full: { dateStyle: 'medium', timeStyle: 'short' }, space: 60 },
	day: { last: 31, stamp: { month: 'short', day: 'numeric', timeZone: 'UTC' }, full: { dateStyle: 'medium', timeZone: 'UTC' }, space: 60 },
	month: { last: 24, stamp: { year: 'numeric', month: 'short', timeZone: 'UTC' }, full: { year: 'numeric', month: 'long', timeZone: 'UTC' }, space: 80 },
};

const by = signal('day');
const found = { service: new Set(), key: new Set() }; // names that were seen
const subject = signal(''); // "", "key NAME" or "service PUBLIC"

function query(more) {
	const q = new URLSearchParams({ by: by.value, last: periods[by.value].last, ...more });
	const [kind, ...name] = subject.value.split(' ');
	if (kind) q.set(kind, name.join(' '));
	return '/api/v1/usage?' + q;
}

// starts are the beginnings of the periods up to now, the oldest first, in seconds.
function starts(period) {
	const now = new Date();
	const list = [];
	for (let i = periods[period].last - 1; i >= 0; i--) {
		const y = now.getUTCFullYear();
		const m = now.getUTCMonth();
		const d = now.getUTCDate();
		const at = { hour: Date.UTC(y, m, d, now.getUTCHours() - i), day: Date.UTC(y, m, d - i), month: Date.UTC(y, m - i) }[period];
		list.push(at / 1000);
	}
	return list;
}

export function Usage() {
	const asked = useAsked(
		async () => {
			const [whole, parts] = await Promise.all([ask('GET', query({ group: 'total' })), ask('GET', query({}))]);
			return { by: by.value, whole, parts };
		},
		60,
		[by.value, subject.value],
	);
	const got = asked.value?.by === by.value ? asked.value : null;
	const shape = periods[by.value];
	const data = useMemo(() => {
		if (!got) return null;
		const rows = new Map(got.whole.rows.map((r) => [Date.parse(r.start) / 1000, r]));
		const at = starts(got.by);
		const of = (field) => at.map((s) => rows.get(s)?.[field] ?? 0);
		return [at, of('sent'), of('received'), of('connections')];
	}, [got]);
	const parts = useMemo(() => {
		if (!got) return [];
		const sums = new Map();
		const shown = new Set(starts(got.by)); // the answer has the latest periods in which there was something, and those that lie ahead of a clock that was set back
		for (const r of got.parts.rows) {
			if (!shown.has(Date.parse(r.start) / 1000)) continue;
			const id = `${r.key} ${r.service}`;
			const sum = sums.get(id) || { id, key: r.key, service: r.service, sent: 0, received: 0, connections: 0 };
			for (const field of ['sent', 'received', 'connections']) sum[field] += r[field];
			sums.set(id, sum);
		}
		return [...sums.values()].sort((a, b) => b.sent + b.received - a.sent - a.received);
	}, [got]);
	const times = useMemo(() => (data ? data[0].map((at, i) => ({ at, sent: data[1][i], received: data[2][i], connections: data[3][i] })).filter((r) => r.sent || r.received || r.connections).reverse() : []), [data]);
	const full = new Intl.DateTimeFormat(lang.value === 'zh' ? 'zh-CN' : undefined, shape.full);

	// What may be chosen: what there is now, and what there was in the times shown so far.
	const proxy = snapshot.value?.role === 'proxy';
	const seen = useMemo(() => {
		for (const s of snapshot.value?.services || []) found.service.add(s.public);
		for (const r of got?.parts.rows || []) {
			found.service.add(r.service);
			found.key.add(r.key);
		}
		return { service: [...found.service].sort().slice(0, 500), key: [...found.key].sort().slice(0, 500) };
	}, [got, snapshot.value === null]);
	const chosen = subject.value;
	const choices = [...seen.key.map((k) => 'key ' + k), ...seen.service.map((s) => 'service ' + s)];

	const sum = (field) => parts.reduce((n, p) => n + p[field], 0);
	const bytes = [
		{ id: 'sent', head: '↑ ' + t('usage.sent'), cls: 'num', cell: (r) => size(r.sent) },
		{ id: 'received', head: '↓ ' + t('usage.received'), cls: 'num', cell: (r) => size(r.received) },
		{ id: 'connections', head: t('usage.connections'), cls: 'num wide', cell: (r) => count(r.connections) },
	];
	return html`<div class="tools">
			<label><span>${t('usage.by')}</span><select id="by" value=${by.value} onChange=${(e) => (by.value = e.currentTarget.value)}>
				${Object.keys(periods).map((p) => html`<option key=${p} value=${p}>${t('usage.' + p)}</option>`)}
			</select></label>
			<label><span>${t('usage.of')}</span><select id="of" value=${chosen} onChange=${(e) => (subject.value = e.currentTarget.value)}>
				<option value="">${t('usage.everything')}</option>
				${chosen && !choices.includes(chosen) && html`<option value=${chosen}>${chosen.slice(chosen.indexOf(' ') + 1)}</option>`}
				${seen.key.length > 0 && proxy && html`<optgroup label=${t('usage.key')}>${seen.key.map((k) => html`<option key=${k} value=${'key ' + k}>${k}</option>`)}</optgroup>`}
				${seen.service.length > 0 && html`<optgroup label=${t('usage.subject')}>${seen.service.map((s) => html`<option key=${s} value=${'service ' + s}>${s}</option>`)}</optgroup>`}
			</select></label>
		</div>
		${asked.error && html`<${Failure} error=${asked.error} again=${asked.again} />`}
		${!got ? !asked.error && html`<p class="dim">${t('app.loading')}</p>`
			: parts.length === 0 ? html`<${Empty}><p>${t('usage.none')}</p></>`
			: html`<${Chart} key=${by.value} title=${t('usage.chart', { period: t('usage.' + by.value).toLowerCase() })} says=${`${t('usage.sum')}: ↑ ${size(sum('sent'))}, ↓ ${size(sum('received'))}`}
					data=${data.slice(0, 3)} bars=${true} stamp=${shape.stamp} space=${shape.space} format=${size}
					series=${[{ name: '↑ ' + t('usage.sent'), colour: '--up' }, { name: '↓ ' + t('usage.received'), colour: '--down' }]} />
				<div><h2>${t('usage.byService')}</h2>
					<${Table} id="usage-parts" label=${t('usage.byService')} count=${parts.length} row=${(i) => parts[i]} keyOf=${(r) => r.id} measured=${true} columns=${[
						{ id: 'service', head: t('usage.subject'), header: true, cell: (r) => html`<span class="cut">${r.service}</span><span class="narrow sub">${r.key}</span>` },
						proxy && { id: 'key', head: t('usage.key'), cls: 'wide', cell: (r) => html`<span class="cut">${r.key}</span>` },
						...bytes].filter(Boolean)} /></div>
				<div><h2>${t('usage.byPeriod')}</h2>
					<${Table} id="usage-times" label=${t('usage.byPeriod')} count=${times.length} row=${(i) => times[i]} keyOf=${(r) => r.at} measured=${true} columns=${[
						{ id: 'at', head: t('usage.period'), header: true, cell: (r) => full.format(r.at * 1000) }, ...bytes]} /></div>
				${got.parts.more && html`<p class="note">${t('usage.more')}</p>`}`}`;
}
