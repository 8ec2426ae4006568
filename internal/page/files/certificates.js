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
	const wrong = (c) => [c.error, c.hint, Date.parse(c.retry_at) > Date.now() && t('over.retryAt', { span: span((Date.parse(c.retry_at) - Date.now()) / 1000) })].filter(Boolean);
	const columns = [
		{ id: 'host', head: t('cert.host'), header: true, cell: (c) => html`<span class="host">${c.host}</span>${c.not_after && html`<span class="narrow sub">${t('cert.expires')}: ${left(c.not_after)}</span>`}${wrong(c).map((w) => html`<span class="narrow sub">${w}</span>`)}` },
		{ id: 'state', head: t('cert.state'), cell: (c) => html`<${Badge} is=${c.state} />${wrong(c).map((w) => html`<span class="reason wide">${w}</span>`)}` },
		snap.role === 'proxy' && { id: 'key', head: t('cert.key'), cls: 'wide', cell: (c) => html`<span class="cut">${c.key || '–'}</span>` },
		{ id: 'expires', head: t('cert.expires'), cls: 'wide nowrap', cell: (c) => (c.not_after ? left(c.not_after) : '–') },
		{ id: 'renewed', head: t('cert.renewed'), cls: 'wide nowrap', cell: (c) => (c.renew_at ? left(c.renew_at) : '–') },
		{ id: 'from', head: t('cert.from'), cls: 'wide', cell: (c) => html`<span class="wrap dim">${c.from}</span>` },
	].filter(Boolean);
	return html`<${Table} label=${t('view.certificates')} columns=${columns} count=${all.length} row=${(i) => all[i]} keyOf=${(c) => `${c.host} ${c.key}`} measured=${true} />`;
}
