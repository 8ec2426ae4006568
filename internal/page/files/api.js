// What the page asks of the process, and what it may ask for: a part of the page is shown only if the process has its API.
import { signal } from './lib/signals.js';
import { keep, kept } from './words.js';

// signedIn is null until it is known.
export const signedIn = signal(null);

// ended is whether a session ended that nobody had ended here.
export const ended = signal(false);

// signedOut is called when the process knows nothing of a session any more.
export function signedOut() {
	ended.value = kept('in') !== null;
	keep('in', '');
	signedIn.value = false;
}

// operations are what the process answers, such as "DELETE /api/v1/pairs/{}"; null until they are known.
export const operations = signal(null);

// keysExpire is whether a key can have an end.
export const keysExpire = signal(false);

export const can = (operation) => operations.value !== null && operations.value.has(operation);

// Problem is a refusal in the process's words. Its status is 0 if the process could not be reached.
export class Problem extends Error {
	constructor(status, detail) {
		super(detail);
		this.status = status;
	}
}

// ask returns the answer to a request, and throws a Problem otherwise.
export async function ask(method, path, body) {
	let response;
	const request = { method, headers: { Accept: 'application/json' }, cache: 'no-store' };
	if (method !== 'GET') {
		request.headers['Content-Type'] = 'application/json';
		if (body !== undefined) request.body = JSON.stringify(body);
	}
	try {
		response = await fetch(path, request);
	} catch (err) {
		throw new Problem(0, String(err.message || err));
	}
	const type = response.headers.get('Content-Type') || '';
	if (!response.ok) {
		let detail = `${response.status} ${response.statusText}`;
		if (type.includes('json')) {
			try {
				detail = (await response.json()).detail || detail;
			} catch {
				// the status says enough
			}
		}
		if (response.status === 401 && path !== '/api/v1/login') signedOut();
		throw new Problem(response.status, detail);
	}
	if (response.status === 204) return null;
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
	keep('in', 'yes');
}

export async function logIn(token) {
	await ask('POST', '/api/v1/login', { token });
	await begin();
}

export async function logOut() {
	await ask('POST', '/api/v1/logout');
	keep('in', '');
	signedIn.value = false;
}
