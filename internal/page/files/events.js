// The event log: what the process said since its start, live.
import { html, signal, useEffect, useState } from './html.js';
import { follow } from './api.js';
import { t } from './words.js';
import { count, moment, when } from './format.js';
import { Empty } from './ui.js';
import { Table } from './table.js';

const most = 1000; // as many as the process keeps
const kinds = { DEBUG: 'dim', INFO: 'dim', WARN: 'warn', ERROR: 'bad' };
const level = signal('all');
const wants = { all: () => true, warn: (e) => e.level === 'WARN' || e.level === 'ERROR', error: (e) => e.level === 'ERROR' };

export function Events() {
	const [list, setList] = useState(null); // the newest first
	useEffect(() => {
		let kept = [];
		let waiting = 0;
		const over = new AbortController();
		let retry = 0;
		const show = () => {
			waiting = 0;
			setList(kept);
		};
		const add = (item) => {
			kept = [item, ...kept.slice(0, most - 1)];
			waiting ||= setTimeout(show, 50); // many come at once
		};
		const open = async () => {
			const last = kept.find((e) => !e.lost);
			try {
				await follow(`/api/v1/events?follow=true&since=${last ? last.id : 0}`, over.signal, {
					opened: () => (waiting ||= setTimeout(show, 300)), // there may be none
					event: (name, data) => {
						const item = JSON.parse(data);
						if (name === 'message') add(item);
						else if (name === 'lost' && kept.length) add({ id: 'lost ' + kept[0].id, lost: item.lost });
					},
				});
			} catch {
				// the worker finds out why, and tells
			}
			if (!over.signal.aborted) retry = setTimeout(open, 3000);
		};
		open();
		return () => {
			clearTimeout(waiting);
			clearTimeout(retry);
			over.abort();
		};
	}, []);
	if (!list) return html`<p class="dim">${t('app.loading')}</p>`;
	const rows = list.filter((e) => e.lost || wants[level.value](e));
	const columns = [
		{ id: 'time', head: t('events.time'), cls: 'time wide', cell: (e) => (e.lost ? '' : html`<time datetime=${e.at} title=${when(e.at)}>${moment(e.at)}</time>`) },
		{ id: 'level', head: t('events.level'), cls: 'level wide', cell: (e) => (e.lost ? '' : html`<${Level} is=${e.level} />`) },
		{ id: 'event', head: t('events.event'), header: true, cell: (e) => e.lost ? html`<span class="dim">${t('events.lost', { n: count(e.lost) })}</span>` : html`<span class="narrow sub">${moment(e.at)} <${Level} is=${e.level} /></span><span class="wrap">${e.event}</span> <${Fields} of=${e.fields} />` },
	];
	return html`<div class="tools">
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
