// The event log: what the process said since its start, and says.
import { html, signal, useEffect, useState } from './html.js';
import { ask } from './api.js';
import { lost } from './live.js';
import { t } from './words.js';
import { count, moment, when } from './format.js';
import { Empty, failed, whileSeen } from './ui.js';
import { Table } from './table.js';

const most = 1000; // as many as the process keeps
const kinds = { DEBUG: 'dim', INFO: 'dim', WARN: 'warn', ERROR: 'bad' };
const level = signal('all');
const wants = { all: () => true, warn: (e) => e.level === 'WARN' || e.level === 'ERROR', error: (e) => e.level === 'ERROR' };

export function Events() {
	const [list, setList] = useState(null); // the newest first
	const [problem, setProblem] = useState(null);
	// No answer that goes on: each holds a connection, of which a browser has six to a host in all its tabs.
	useEffect(() => {
		let kept = [];
		let over = false;
		const asking = whileSeen(2, async () => {
			const last = kept.find((e) => !e.lost);
			try {
				const got = await ask('GET', `/api/v1/events?since=${last ? last.id : 0}`);
				if (over) return;
				const fresh = got.events.reverse();
				if (got.lost && last) fresh.push({ id: 'lost after ' + last.id, lost: got.lost });
				if (fresh.length) kept = [...fresh, ...kept].slice(0, most);
				setList(kept);
				setProblem(null);
			} catch (err) {
				if (!over) setProblem(err);
			}
		});
		return () => {
			over = true;
			asking.end();
		};
	}, []);
	// While the process is silent the head of the page says so.
	const wrong = problem && !lost.value && html`<p class="problem" role="alert">${failed(problem)}</p>`;
	if (!list && wrong) return wrong;
	if (!list) return html`<p class="dim">${t('app.loading')}</p>`;
	const rows = list.filter((e) => e.lost || wants[level.value](e));
	const columns = [
		{ id: 'time', head: t('events.time'), cls: 'time wide', cell: (e) => (e.lost ? '' : html`<time datetime=${e.at} title=${when(e.at)}>${moment(e.at)}</time>`) },
		{ id: 'level', head: t('events.level'), cls: 'level wide', cell: (e) => (e.lost ? '' : html`<${Level} is=${e.level} />`) },
		{ id: 'event', head: t('events.event'), header: true, cell: (e) => e.lost ? html`<span class="dim">${t('events.lost', { n: count(e.lost) })}</span>` : html`<span class="narrow sub">${moment(e.at)} <${Level} is=${e.level} /></span><span class="wrap">${e.event}</span> <${Fields} of=${e.fields} />` },
	];
	return html`${wrong}
		<div class="tools">
			<label><span>${t('events.level')}</span><select id="level" value=${level.value} onChange=${(e) => (level.value = e.currentTarget.value)}>
				${Object.keys(wants).map((name) => html`<option key=${name} value=${name}>${t('events.' + name)}</option>`)}
			</select></label>
		</div>
		${rows.length === 0 ? html`<${Empty}><p>${t(list.length ? 'events.noMatch' : 'events.none')}</p></>`
			: html`<${Table} id="log" label=${t('view.events')} columns=${columns} count=${rows.length} row=${(i) => rows[i]} keyOf=${(e) => e.id} measured=${true} height=${41} />`}`;
}

function Level({ is }) {
	return html`<span class=${'badge ' + (kinds[is] || 'dim')}>${t('level.' + is)}</span>`;
}

function Fields({ of }) {
	return html`<span class="fields">${Object.entries(of || {}).map(([name, value]) => html`<span key=${name}><b>${name}</b> ${typeof value === 'object' ? JSON.stringify(value) : String(value)} </span>`)}</span>`;
}
