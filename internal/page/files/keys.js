// The keys of a proxy: who may connect, and what they may publish.
import { html, useRef, useState } from './html.js';
import { ask, can, keysExpire } from './api.js';
import { snapshot } from './live.js';
import { t } from './words.js';
import { count, day, span } from './format.js';
import { Command, Confirm, Dialog, Empty, Failure, copyText, failed, say, useAsked } from './ui.js';
import { Table } from './table.js';

const pathOf = (name) => '/api/v1/keys/' + encodeURIComponent(name);

// of says what a key has now: links, services and connections.
function of(name, snap) {
	return {
		links: snap?.links.filter((l) => l.key === name && l.state !== 'down').length ?? 0,
		services: snap?.services.filter((s) => s.key === name).length ?? 0,
		connections: snap?.keys.filter((k) => k.key === name).reduce((n, k) => n + k.connections, 0) ?? 0,
	};
}

export function Keys() {
	const asked = useAsked(() => ask('GET', '/api/v1/keys'), 10);
	const [open, setOpen] = useState(null); // {dialog, key}
	const close = () => {
		setOpen(null);
		asked.again();
	};
	const snap = snapshot.value;
	if (!asked.value) return asked.error ? html`<${Failure} error=${asked.error} again=${asked.again} />` : html`<p class="dim">${t('app.loading')}</p>`;
	const keys = asked.value.keys;
	const now = new Map(keys.map((k) => [k.name, { links: 0, services: 0, connections: 0 }]));
	for (const l of snap?.links ?? []) if (l.state !== 'down' && now.has(l.key)) now.get(l.key).links++;
	for (const s of snap?.services ?? []) if (now.has(s.key)) now.get(s.key).services++;
	for (const k of snap?.keys ?? []) if (now.has(k.key)) now.get(k.key).connections += k.connections;
	const button = (dialog, key, word, extra = '') => html`<button type="button" class=${'small ' + extra} aria-label=${`${t(word)}: ${key.name}`} onClick=${() => setOpen({ dialog, key })}>${t(word)}</button>`;
	const undo = async (key) => {
		try {
			await ask('DELETE', pathOf(key.name) + '/drain');
			say(t('keys.undrained', key));
			asked.again();
		} catch (err) {
			say(failed(err), true);
		}
	};
	// present is what the wide columns say of a key, in one line.
	const present = (k) => {
		const { links, connections } = now.get(k.name);
		const at = Date.parse(k.expires);
		const ends = at > 0 && (at > Date.now() ? `${t('keys.expires')}: ${t('keys.in', { span: span((at - Date.now()) / 1000) })}` : t('keys.expired'));
		return [t(links > 0 ? 'keys.connected' : 'keys.notConnected'), connections > 0 && t('over.nConnections', { n: count(connections) }), ends].filter(Boolean).join(' · ');
	};
	const columns = [
		{ id: 'name', head: t('keys.name'), header: true, cell: (k) => html`<span class="cut">${k.name}</span>${k.source === 'config' && html` <span class="badge dim">${t('keys.source.config')}</span>`}${k.rotated && html` <span class="badge warn">${t('keys.rotated')}</span>`}${k.drained && html` <span class="badge warn">${t('keys.isDrained')}</span>`}<span class="narrow sub">${may(k)}</span><span class="narrow sub">${present(k)}</span>` },
		{ id: 'allow', head: t('keys.allow'), cls: 'wide', cell: (k) => html`<span class="wrap">${may(k)}</span>${limits(k) && html`<span class="reason">${limits(k)}</span>`}${k.source === 'config' && html`<span class="reason">${t('keys.inFile')}</span>`}` },
		{ id: 'online', head: t('keys.online'), cls: 'wide', cell: (k) => (now.get(k.name).links > 0 ? html`<span class="badge good">${t('keys.connected')}</span>` : html`<span class="badge dim">${t('keys.notConnected')}</span>`) },
		{ id: 'connections', head: t('keys.connections'), cls: 'num wide', cell: (k) => count(now.get(k.name).connections) },
		{ id: 'expires', head: t('keys.expires'), cls: 'wide', cell: (k) => expiry(k) },
		{ id: 'created', head: t('keys.created'), cls: 'wide nowrap', cell: (k) => (k.created ? day(k.created) : '–') },
		{
			id: 'do', head: t('app.actions'), hidden: true, cls: 'do',
			cell: (k) => html`<span class="row">
				${k.source !== 'config' && can('PATCH /api/v1/keys/{}') && button('edit', k, 'keys.edit')}
				${k.source !== 'config' && can('POST /api/v1/keys/{}/rotate') && button('rotate', k, 'keys.rotate')}
				${can('POST /api/v1/keys/{}/drain') && (k.drained ? html`<button type="button" class="small" aria-label=${`${t('keys.undrain')}: ${k.name}`} onClick=${() => undo(k)}>${t('keys.undrain')}</button>` : button('drain', k, 'keys.drain'))}
				${k.source !== 'config' && can('DELETE /api/v1/keys/{}') && button('remove', k, 'keys.remove', 'danger')}
			</span>`,
		},
	];
	const is = open?.dialog;
	const key = open?.key;
	return html`<div class="sums"><p><strong>${count(keys.length)}</strong> <span class="dim">${t('view.keys')}</span></p>
			<button type="button" class="primary" id="add-key" onClick=${() => setOpen({ dialog: 'add' })}>${t('keys.add')}</button></div>
		${keys.length === 0 ? html`<${Empty}><p>${t('keys.none')}</p><${Command}>reverser key add nas --allow tcp/9000</></>`
			: html`<${Table} id="keys" label=${t('view.keys')} columns=${columns} count=${keys.length} row=${(i) => keys[i]} keyOf=${(k) => k.id} measured=${true} height=${45} />`}
		${(is === 'add' || is === 'edit') && html`<${Edit} of=${is === 'edit' ? key : null} onClose=${close} onToken=${(token) => setOpen({ dialog: 'token', key: token })} />`}
		${is === 'token' && html`<${Token} of=${key} onClose=${close} />`}
		${is === 'remove' && html`<${Confirm} title=${t('keys.removeTitle', key)} button=${t('keys.remove')} danger=${true} onClose=${close} act=${async () => {
			await ask('DELETE', pathOf(key.name));
			say(t('keys.removed', key));
		}}><p>${t('keys.removeText', counted(of(key.name, snap)))}</p></>`}
		${is === 'drain' && html`<${Confirm} title=${t('keys.drainTitle', key)} button=${t('keys.drain')} danger=${true} onClose=${close} act=${async () => {
			await ask('POST', pathOf(key.name) + '/drain');
			say(t('keys.drained', key));
		}}><p>${t('keys.drainText', counted(of(key.name, snap)))}</p></>`}
		${is === 'rotate' && html`<${Rotate} of=${key} onClose=${close} onToken=${(token) => setOpen({ dialog: 'token', key: token })} />`}`;
}

const counted = (has) => Object.fromEntries(Object.entries(has).map(([k, v]) => [k, count(v)]));

const may = (k) => [...k.allow, ...(k.allow_connect ?? [])].join(', ') || '–';

function limits(k) {
	return [k.max_services && `${t('keys.maxServices')}: ${count(k.max_services)}`, k.max_connections && `${t('keys.maxConnections')}: ${count(k.max_connections)}`].filter(Boolean).join(', ');
}

function expiry(k) {
	const at = Date.parse(k.expires);
	if (!(at > 0)) return html`<span class="dim">${t('keys.never')}</span>`;
	const left = (at - Date.now()) / 1000;
	if (left <= 0) return html`<span class="badge bad">${t('keys.expired')}</span>`;
	return html`<span title=${day(at)} class=${left < 7 * 86400 ? 'badge warn' : ''}>${t('keys.in', { span: span(left) })}</span>`;
}

// Edit makes a key, or changes one.
function Edit({ of: key, onClose, onToken }) {
	const form = useRef(null);
	const [busy, setBusy] = useState(false);
	const [error, setError] = useState('');
	const submit = async (event) => {
		event.preventDefault();
		setBusy(true);
		setError('');
		const value = (name) => form.current.elements[name]?.value.trim() ?? '';
		const allow = value('allow').split(/[\s,]+/).filter(Boolean);
		// Of a key that is there, only what is different from what the dialog showed at first: somebody else may have changed the rest meanwhile.
		const body = {};
		if (allow.join() !== key?.allow.join()) body.allow = allow;
		for (const name of ['max_services', 'max_connections']) {
			const most = Number(value(name));
			if (most !== (key?.[name] ?? 0)) body[name] = most;
		}
		if (value('expires') !== '') body.expires = value('expires');
		try {
			if (key) {
				if (Object.keys(body).length > 0) await ask('PATCH', pathOf(key.name), body);
				say(t('keys.saved', key));
				onClose();
			} else {
				onToken({ ...(await ask('POST', '/api/v1/keys', { name: value('name'), ...body })), allow });
			}
		} catch (err) {
			setError(failed(err));
			setBusy(false);
		}
	};
	return html`<${Dialog} title=${key ? t('keys.editTitle', key) : t('keys.addTitle')} onClose=${onClose}>
		<form ref=${form} onSubmit=${submit}>
			${!key && html`<label><span>${t('keys.name')}</span><input name="name" required autofocus autocapitalize="off" autocomplete="off" spellcheck="false" aria-describedby="name-hint" /></label><p class="note" id="name-hint">${t('keys.nameHint')}</p>`}
			<label><span>${t('keys.allow')}</span><textarea name="allow" rows="3" required autofocus=${Boolean(key)} autocapitalize="off" spellcheck="false" aria-describedby="allow-hint" defaultValue=${key ? key.allow.join('\n') : ''}></textarea></label>
			<p class="note" id="allow-hint">${t('keys.allowHint')}</p>
			<div class="pair">
				<label><span>${t('keys.maxServices')}</span><input name="max_services" type="number" min="0" step="1" inputmode="numeric" placeholder=${t('keys.unlimited')} defaultValue=${key?.max_services || ''} /></label>
				<label><span>${t('keys.maxConnections')}</span><input name="max_connections" type="number" min="0" step="1" inputmode="numeric" placeholder=${t('keys.unlimited')} defaultValue=${key?.max_connections || ''} /></label>
			</div>
			${keysExpire.value && html`<label><span>${t('keys.expires')}</span><input name="expires" autocomplete="off" spellcheck="false" aria-describedby="expires-hint" /></label><p class="note" id="expires-hint">${t(key ? 'keys.expiresEditHint' : 'keys.expiresHint')}</p>`}
			${error && html`<p class="problem" role="alert">${error}</p>`}
			<div class="buttons">
				<button type="button" onClick=${onClose}>${t('app.cancel')}</button>
				<button type="submit" class="primary" disabled=${busy}>${key ? t('keys.save') : t('keys.add')}</button>
			</div>
		</form>
	</>`;
}

// Rotate asks before it makes a second secret.
function Rotate({ of: key, onClose, onToken }) {
	const [busy, setBusy] = useState(false);
	const [error, setError] = useState('');
	const go = async () => {
		setBusy(true);
		try {
			onToken({ allow: key.allow, name: key.name, ...(await ask('POST', pathOf(key.name) + '/rotate')) });
		} catch (err) {
			setError(failed(err));
			setBusy(false);
		}
	};
	return html`<${Dialog} title=${t('keys.rotateTitle', key)} onClose=${onClose}>
		<p>${t('keys.rotateText')}</p>
		${error && html`<p class="problem" role="alert">${error}</p>`}
		<div class="buttons">
			<button type="button" onClick=${onClose} autofocus>${t('app.cancel')}</button>
			<button type="button" class="primary" disabled=${busy} onClick=${go}>${t('keys.rotateButton')}</button>
		</div>
	</>`;
}

// example is something that a bridge can publish with a key.
function example(allow = []) {
	const port = /^tcp\/(\d+)(-\d+)?$/.exec(allow[0] || 'tcp/9000');
	return port ? port[1] : `${allow[0].replace('*', 'app').replace(/-\d+$/, '')}=8080`;
}

// Token shows a token this once.
function Token({ of: { name, token, allow }, onClose }) {
	const text = useRef(null);
	const [done, setDone] = useState('');
	const copy = async () => setDone((await copyText(text.current)) ? 'keys.copied' : 'keys.notCopied');
	return html`<${Dialog} title=${t('keys.tokenTitle', { name })} onClose=${onClose} wide=${true}>
		<p>${t('keys.tokenOnce')}</p>
		<p class="token"><code id="token-text" ref=${text}>${token}</code></p>
		<p><button type="button" class="primary" id="copy-token" autofocus onClick=${copy}>${t('keys.copy')}</button> <span role="status" class="note">${done && t(done)}</span></p>
		<p>${t('keys.tokenUse')}</p>
		<${Command}>reverser bridge --token-file ${name}.token ${example(allow)}</>
		<div class="buttons"><button type="button" onClick=${onClose}>${t('keys.done')}</button></div>
	</>`;
}
