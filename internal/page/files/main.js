// The page: who is logged in, which view is shown, and what is true of all of them.
import { html, render, signal, useEffect, useRef, useState } from './html.js';
import { begin, can, ended, logIn, logOut, operations, session, signedIn } from './api.js';
import { lost, otherVersion, snapshot, start, stop } from './live.js';
import { lang, speak, t } from './words.js';
import { choice, paint } from './theme.js';
import { Failure, Said, failed, say } from './ui.js';
import { clock, span } from './format.js';
import { Overview } from './overview.js';
import { Connections } from './connections.js';
import { Usage } from './usage.js';
import { Events } from './events.js';
import { Keys } from './keys.js';
import { Certificates } from './certificates.js';

// The views, and what the process must answer for each.
const views = [
	{ id: 'overview', view: Overview },
	{ id: 'connections', view: Connections, needs: 'GET /api/v1/stream' },
	{ id: 'usage', view: Usage, needs: 'GET /api/v1/usage' },
	{ id: 'events', view: Events, needs: 'GET /api/v1/events' },
	{ id: 'keys', view: Keys, needs: 'GET /api/v1/keys' },
	{ id: 'certificates', view: Certificates },
];

const place = signal('');
const readPlace = () => (place.value = location.hash.replace(/^#\/?/, '').split('?')[0]);
addEventListener('hashchange', readPlace);
readPlace();

const unreachable = signal(null); // why nothing is known yet

function Login() {
	const [busy, setBusy] = useState(false);
	const [error, setError] = useState('');
	const field = useRef(null);
	useEffect(() => field.current.focus(), []);
	const submit = async (event) => {
		event.preventDefault();
		setBusy(true);
		setError('');
		try {
			await logIn(field.current.value.trim());
		} catch (err) {
			setError(err.status === 401 ? t('login.wrong') : failed(err));
			setBusy(false);
			field.current.select();
		}
	};
	return html`<main id="content" class="login" tabindex="-1">
		<h1>reverser</h1>
		${ended.value && html`<p class="lost">${t('login.ended')}</p>`}
		<form onSubmit=${submit}>
			<label for="token">${t('login.token')}</label>
			<input id="token" name="token" type="password" autocomplete="current-password" spellcheck="false" required ref=${field} aria-describedby="where" aria-invalid=${error ? 'true' : undefined} />
			${error && html`<p class="problem" role="alert">${error}</p>`}
			<button type="submit" class="primary" disabled=${busy}>${busy ? t('login.waiting') : t('login.go')}</button>
		</form>
		<p id="where" class="note">${t('login.where')}</p>
		<${Choices} />
	</main>`;
}

// Choices are the language and the colours.
function Choices() {
	return html`<div class="choices">
		<label><span class="unseen">${t('app.language')}</span>
			<select value=${lang.value} onChange=${(e) => speak(e.currentTarget.value)}>
				<option value="en" lang="en">English</option>
				<option value="zh" lang="zh-CN">中文</option>
			</select></label>
		<label><span class="unseen">${t('app.theme')}</span>
			<select value=${choice.value} onChange=${(e) => paint(e.currentTarget.value)}>
				<option value="">${t('app.theme.auto')}</option>
				<option value="light">${t('app.theme.light')}</option>
				<option value="dark">${t('app.theme.dark')}</option>
			</select></label>
	</div>`;
}

function Top({ current, open }) {
	const snap = snapshot.value;
	const leave = async () => {
		try {
			await logOut();
		} catch (err) {
			say(failed(err), true);
		}
	};
	return html`<header>
		<a class="skip" href="#content" onClick=${(e) => { e.preventDefault(); document.getElementById('content').focus(); }}>${t('app.skip')}</a>
		<div class="bar">
			<p class="name"><strong>reverser</strong> ${snap && html`<span>${snap.role}</span> <span class="dim wide">${snap.version}</span>`}</p>
			<${Pulse} />
			<${Choices} />
			<button type="button" class="quiet" onClick=${leave}>${t('app.logOut')}</button>
		</div>
		<nav aria-label=${t('app.views')}><ul>
			${open.map((v) => html`<li key=${v.id}><a href=${'#/' + v.id} aria-current=${v.id === current ? 'page' : undefined}>${t('view.' + v.id)}</a></li>`)}
		</ul></nav>
	</header>`;
}

// Pulse says whether what is shown is of now.
function Pulse() {
	if (lost.value) return html`<span class="pulse bad">${t('state.away')}</span>`;
	const snap = snapshot.value;
	if (!snap) return html`<span class="pulse warn">${t('app.connecting')}</span>`;
	if (snap.stopping) return html`<span class="pulse warn">${t('app.stopping')}</span>`;
	return html`<span class="pulse good"><span>${t('app.live')}<span class="wide">${t('app.up', { span: span(snap.uptime_seconds) })}</span></span></span>`;
}

// Lost says that the process is silent, and since when: the words once for screen readers, the seconds for the eyes.
function Lost() {
	const [, tick] = useState(0);
	const is = lost.value;
	useEffect(() => {
		if (!is) return undefined;
		const timer = setInterval(() => tick((n) => n + 1), 1000);
		return () => clearInterval(timer);
	}, [is]);
	return html`<div role="status" aria-live="polite" aria-atomic="false">
		${is && html`<div class="lost">${t('app.lost', { time: clock(is.since) })} <span aria-hidden="true">(${span((Date.now() - is.since) / 1000)})</span> ${is.why}</div>`}
		${!is && otherVersion.value && html`<div class="lost">${t('app.otherVersion', { version: otherVersion.value })} <button type="button" class="small" onClick=${() => location.reload()}>${t('app.reloadPage')}</button></div>`}
	</div>`;
}

function Page() {
	const known = signedIn.value === true && operations.value !== null;
	useEffect(() => {
		if (!known) return undefined;
		start();
		return stop;
	}, [known]);
	const open = views.filter((v) => (!v.needs || can(v.needs)) && !(v.id === 'keys' && snapshot.value?.role === 'bridge'));
	const here = open.find((v) => v.id === place.value) || open[0];
	const role = known ? snapshot.value?.role : '';
	const title = known && here ? t('view.' + here.id) : t('login.title');
	useEffect(() => {
		document.title = [title, 'reverser', role].filter(Boolean).join(' · ');
	}, [title, role]);
	const was = useRef('');
	useEffect(() => { // a new view begins at its top, and a screen reader hears of it
		if (was.current && was.current !== here?.id) {
			scrollTo(0, 0);
			document.getElementById('content')?.focus({ preventScroll: true });
		}
		document.querySelector('nav a[aria-current]')?.scrollIntoView({ block: 'nearest', inline: 'nearest' });
		was.current = known ? here.id : '';
	}, [here?.id, known]);
	if (unreachable.value && signedIn.value === null) {
		return html`<main id="content" tabindex="-1"><${Failure} error=${unreachable.value} again=${first} /></main>`;
	}
	if (signedIn.value === null) return html`<main id="content" tabindex="-1"><p class="dim">${t('app.loading')}</p></main>`;
	if (!known) return html`<${Login} />`;
	return html`<${Top} current=${here.id} open=${open} />
		<${Lost} />
		<main id="content" tabindex="-1" class=${'view ' + here.id + (lost.value ? ' old' : '')}>
			<h1 class="unseen">${title}</h1>
			<${here.view} key=${here.id} />
		</main>
		<${Said} />`;
}

// A page where nobody logged in before does not ask only to be refused.
async function first() {
	unreachable.value = null;
	if (!session()) {
		signedIn.value = false;
		return;
	}
	try {
		await begin();
	} catch (err) {
		if (err.status !== 401) unreachable.value = err;
	}
}

render(html`<${Page} />`, document.getElementById('page'));
first();

