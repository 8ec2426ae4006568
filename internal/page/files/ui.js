// The small parts that the views share.
import { html, signal, useEffect, useLayoutEffect, useRef, useState } from './html.js';
import { Problem } from './api.js';
import { t } from './words.js';
import { state } from './format.js';

// said is what an order did, for eyes and for screen readers. What moves by itself is never said.
export const said = signal(null);
let fading = 0;

export function say(text, bad = false) {
	clearTimeout(fading);
	said.value = { text, bad };
	fading = setTimeout(() => (said.value = null), bad ? 20_000 : 8_000);
}

export function Said() {
	const s = said.value;
	return html`<div class="said" role="status" aria-live="polite">
		${s && html`<p class=${s.bad ? 'bad' : ''}>${s.text} <button type="button" class="quiet" aria-label=${t('app.close')} onClick=${() => (said.value = null)}>✕</button></p>`}
	</div>`;
}

// failed is an error in words for people.
export function failed(err) {
	if (err instanceof Problem && err.status === 0) return t('app.unreachable');
	return t('app.error', { detail: err.message });
}

// Badge is a state: a colour, a shape and a word.
export function Badge({ is, title }) {
	const kind = { up: 'good', valid: 'good', open: 'good', down: 'bad', denied: 'bad', failed: 'bad', retrying: 'warn', away: 'warn', draining: 'warn', paused: 'warn', pending: 'warn', 'half-closed': 'dim', removed: 'dim', ended: 'dim' }[is] || 'dim';
	return html`<span class=${'badge ' + kind} title=${title}>${state(is)}</span>`;
}

// Command is something to type, which a button copies.
export function Command({ children }) {
	const [done, setDone] = useState('');
	const ref = useRef(null);
	const copy = async () => setDone((await copyText(ref.current)) ? 'keys.copied' : 'keys.notCopied');
	return html`<div class="command"><code ref=${ref}>${children}</code><button type="button" class="small" onClick=${copy}>${t('keys.copy')}</button><span role="status" class="note">${done && t(done)}</span></div>`;
}

// copyText copies the text of an element; where the browser does not, it selects it.
export async function copyText(element) {
	try {
		await navigator.clipboard.writeText(element.textContent);
		return true;
	} catch {
		const range = document.createRange();
		range.selectNodeContents(element);
		const selection = getSelection();
		selection.removeAllRanges();
		selection.addRange(range);
		return false;
	}
}

// Dialog is modal: the focus stays in it, Escape closes it, and the focus then goes back to where it was.
export function Dialog({ title, onClose, children, wide }) {
	const ref = useRef(null);
	useLayoutEffect(() => { // at once, not when there is time: the focus must not come back to a place that was left meanwhile
		const from = document.activeElement;
		const dialog = ref.current;
		dialog.showModal();
		const keep = (e) => { // the focus of a modal dialog may otherwise go to the browser's own buttons
			if (e.key !== 'Tab') return;
			const all = [...dialog.querySelectorAll('button, input, select, textarea')].filter((x) => !x.disabled);
			const end = e.shiftKey ? all[0] : all[all.length - 1];
			if (document.activeElement !== end) return;
			e.preventDefault();
			(e.shiftKey ? all[all.length - 1] : all[0]).focus();
		};
		dialog.addEventListener('keydown', keep);
		return () => {
			if (dialog.open) dialog.close();
			if (from && from.isConnected) from.focus();
			else document.getElementById('content')?.focus();
		};
	}, []);
	return html`<dialog ref=${ref} class=${wide ? 'wide' : ''} aria-labelledby="dialog-title" onCancel=${(e) => { e.preventDefault(); onClose(); }}>
		<h2 id="dialog-title">${title}</h2>
		${children}
	</dialog>`;
}

// Confirm asks before something that cannot be undone. act does it, and says what came of it.
export function Confirm({ title, button, act, onClose, danger, children }) {
	const [busy, setBusy] = useState(false);
	const [error, setError] = useState('');
	const go = async () => {
		setBusy(true);
		setError('');
		try {
			await act();
			onClose();
		} catch (err) {
			setError(failed(err));
			setBusy(false);
		}
	};
	return html`<${Dialog} title=${title} onClose=${onClose}>
		${children}
		${error && html`<p class="problem" role="alert">${error}</p>`}
		<div class="buttons">
			<button type="button" onClick=${onClose} autofocus>${t('app.cancel')}</button>
			<button type="button" class=${danger ? 'danger' : 'primary'} disabled=${busy} onClick=${go}>${button}</button>
		</div>
	</>`;
}

// whileSeen calls ask at once and then every so many seconds, one call after the other, and not while the tab is hidden. again has it called
// once more without a wait, and end ends it. ask throws nothing.
export function whileSeen(seconds, ask) {
	let timer = 0;
	let asking = false;
	let more = false;
	let over = false;
	const again = async () => {
		clearTimeout(timer);
		more = true;
		if (asking) return;
		asking = true;
		while (more && !over) {
			more = false;
			await ask();
		}
		asking = false;
		if (!over && seconds) timer = setTimeout(seen, seconds * 1000);
	};
	const seen = () => {
		if (!document.hidden) again();
	};
	document.addEventListener('visibilitychange', seen);
	seen();
	const end = () => {
		over = true;
		clearTimeout(timer);
		document.removeEventListener('visibilitychange', seen);
	};
	return { again, end };
}

// useAsked asks for something when the view appears, and again every so many seconds.
export function useAsked(get, every, deps = []) {
	const [got, setGot] = useState({ value: null, error: null });
	const asking = useRef(null);
	useEffect(() => {
		let over = false;
		asking.current = whileSeen(every, async () => {
			try {
				const value = await get();
				if (!over) setGot({ value, error: null });
			} catch (error) {
				if (!over) setGot((was) => ({ value: was.value, error }));
			}
		});
		return () => {
			over = true;
			asking.current.end();
		};
	}, deps);
	return { ...got, again: () => asking.current?.again() };
}

// Failure is what a view shows in the place of what it could not get.
export function Failure({ error, again }) {
	return html`<p class="problem" role="alert">${failed(error)} <button type="button" class="small" onClick=${again}>${t('app.retry')}</button></p>`;
}

export function Empty({ children }) {
	return html`<div class="empty">${children}</div>`;
}
