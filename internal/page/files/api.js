// What the page asks of the process, and what it may ask for: a part of the page is shown only if the process has its API.
import { signal } from './lib/signals.js';
import { Problem, get, send } from './http.js';

export { Problem };

// The secret of the session is kept for this tab alone, and for this origin: a cookie would reach every port of the host.
const place = 'reverser.session';
let secret = '';
try {
	secret = sessionStorage.getItem(place) || '';
} catch {
	// it holds until the page is loaded again
}

// session is what opens the API; '' if nobody is logged in.
export const session = () => secret;

function setSession(value) {
	secret = value;
	try {
		if (value) sessionStorage.setItem(place, value);
		else sessionStorage.removeItem(place);
	} catch {
		// as above
	}
}

// signedIn is null until it is known.
export const signedIn = signal(null);

// ended is whether a session ended that nobody had ended here.
export const ended = signal(false);

// signedOut is called when the process knows nothing of a session any more.
export function signedOut() {
	ended.value ||= secret !== ''; // several requests may hear of it
	setSession('');
	signedIn.value = false;
}

// operations are what the process answers, such as "DELETE /api/v1/pairs/{}"; null until they are known.
export const operations = signal(null);

// keysExpire is whether a key can have an end.
export const keysExpire = signal(false);

export const can = (operation) => operations.value !== null && operations.value.has(operation);

// ask returns the answer to a request, and throws a Problem otherwise.
export async function ask(method, path, body) {
	try {
		return method === 'GET' ? await get(path, secret) : await order(method, path, body);
	} catch (err) {
		if (err.status === 401 && path !== '/api/v1/login') signedOut();
		throw err;
	}
}

async function order(method, path, body) {
	const headers = { Accept: 'application/json', 'Content-Type': 'application/json' };
	const response = await send(path, secret, { method, headers, body: body === undefined ? undefined : JSON.stringify(body) });
	if (response.status === 204) return null;
	const type = response.headers.get('Content-Type') || '';
	return type.includes('json') ? response.json() : response.text();
}

// begin finds out whether somebody is logged in, and what the process answers.
export async function begin() {
	const description = await ask('GET', '/api/v1/openapi.yaml');
	const found = new Set();
	let path = '';
	for (const line of description.split('\n')) {
		const p = /^  (\/[^:\s]*):/.exec(line);
		if (p) path = p[1].replace(/\{[^}]*\}/g, '{}');
		else if (/^\S/.test(line)) path = '';
		const m = /^    (get|post|put|patch|delete):/.exec(line);
		if (m && path) found.add(`${m[1].toUpperCase()} ${path}`);
	}
	operations.value = found;
	keysExpire.value = /^ +expires:/m.test(description);
	ended.value = false;
	signedIn.value = true;
}

export async function logIn(token) {
	setSession((await ask('POST', '/api/v1/login', { token })).session);
	await begin();
}

export async function logOut() {
	await ask('POST', '/api/v1/logout');
	setSession('');
	signedIn.value = false;
}
