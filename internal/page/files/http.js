// What the page and its worker share: requests with the session, refusals, and answers that go on.

// silence is how many milliseconds the process may say nothing while something is expected of it. After that it is lost, or the connection is.
export const silence = 6_000;

// Problem is a refusal in the process's words. Its status is 0 if the process could not be reached.
export class Problem extends Error {
	constructor(status, detail) {
		super(detail);
		this.status = status;
	}
}

// send returns the response to a request, and throws a Problem otherwise. The session goes with it as a header, which a browser never sends by itself.
export async function send(path, session, request = {}) {
	const headers = { ...request.headers };
	if (session) headers['X-Reverser-Session'] = session;
	let response;
	try {
		response = await fetch(path, { cache: 'no-store', ...request, headers });
	} catch (err) {
		throw new Problem(0, String(err.message || err));
	}
	if (response.ok) return response;
	let detail = `${response.status} ${response.statusText}`;
	if ((response.headers.get('Content-Type') || '').includes('json')) {
		try {
			detail = (await response.json()).detail || detail;
		} catch {
			// the status says enough
		}
	}
	throw new Problem(response.status, detail);
}

// get returns the answer to a GET: a value if it is JSON, else text. One that takes long is waited for as long as something comes.
export async function get(path, session) {
	const control = new AbortController();
	let timer = 0;
	const heard = () => {
		clearTimeout(timer);
		timer = setTimeout(() => control.abort(), silence);
	};
	heard();
	try {
		const response = await send(path, session, { headers: { Accept: 'application/json' }, signal: control.signal });
		const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
		let text = '';
		for (;;) {
			const { done, value } = await reader.read();
			if (done) break;
			heard();
			text += value;
		}
		return (response.headers.get('Content-Type') || '').includes('json') ? JSON.parse(text) : text;
	} catch (err) {
		throw err instanceof Problem ? err : new Problem(0, String(err.message || err));
	} finally {
		clearTimeout(timer);
	}
}

// follow asks for server-sent events, which an EventSource does without a header, and calls event(name, data) with each until the process or
// signal ends them; heard when anything comes. It throws a Problem.
export async function follow(path, session, signal, { heard, event }) {
	const response = await send(path, session, { headers: { Accept: 'text/event-stream' }, signal });
	const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = '';
	let name = 'message';
	let data = [];
	for (;;) {
		let got;
		try {
			got = await reader.read();
		} catch (err) {
			throw new Problem(0, String(err.message || err));
		}
		if (got.done || signal.aborted) return;
		heard();
		const lines = (rest + got.value).split('\n');
		rest = lines.pop();
		for (const line of lines) {
			if (line === '') {
				if (data.length) event(name, data.join('\n'));
				name = 'message';
				data = [];
			} else if (line.startsWith('event: ')) {
				name = line.slice(7);
			} else if (line.startsWith('data: ')) {
				data.push(line.slice(6));
			}
		}
	}
}
