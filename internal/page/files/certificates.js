// The certificates of names for which the process ends TLS.
import { html } from './html.js';
import { snapshot } from './live.js';
import { t } from './words.js';
import { span, when } from './format.js';
import { Badge, Empty } from './ui.js';
import { Table } from './table.js';

export function Certificates() {
	const snap = snapshot.value;
	if (!snap) return html`<p class="dim">${t('app.connecting')}</p>`;
	const all = snap.certificates || [];
	if (all.length === 0) return html`<${Empty}><p>${t('cert.none')}</p></>`;
	const left = (at) => {
		const seconds = (Date.parse(at) - Date.now()) / 1000;
		return seconds > 0 ? html`<span title=${when(at)}>${t('keys.in', { span: span(seconds) })}</span>` : when(at);
	};
	const columns = [
		{ id: 'host', head: t('cert.host'), header: true, cell: (c) => html`<span class="wrap">${c.host}</span>` },
		{
			id: 'state', head: t('cert.state'),
			cell: (c) => html`<${Badge} is=${c.state} />${c.error && html`<span class="reason">${c.error}</span>`}${c.hint && html`<span class="reason">${c.hint}</span>`}
				${Date.parse(c.retry_at) > Date.now() && html`<span class="reason">${t('over.retryAt', { span: span((Date.parse(c.retry_at) - Date.now()) / 1000) })}</span>`}`,
		},
		snap.role === 'proxy' && { id: 'key', head: t('cert.key'), cls: 'wide', cell: (c) => html`<span class="cut">${c.key || '–'}</span>` },
		{ id: 'expires', head: t('cert.expires'), cell: (c) => (c.not_after ? left(c.not_after) : '–') },
		{ id: 'renewed', head: t('cert.renewed'), cls: 'wide', cell: (c) => (c.renew_at ? left(c.renew_at) : '–') },
		{ id: 'from', head: t('cert.from'), cls: 'wide', cell: (c) => html`<span class="wrap dim">${c.from}</span>` },
	].filter(Boolean);
	return html`<${Table} label=${t('view.certificates')} columns=${columns} count=${all.length} row=${(i) => all[i]} keyOf=${(c) => `${c.host} ${c.key}`} measured=${true} />`;
}
