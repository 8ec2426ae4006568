// How connections are searched. Words that are an address or a network mean the client, as in `reverser end --client`.

// parse reads an IP address: {bytes, bits}, or null.
export function parse(text) {
	if (/^\d{1,3}(\.\d{1,3}){3}$/.test(text)) {
		const bytes = text.split('.').map(Number);
		return bytes.every((b) => b < 256) ? bytes : null;
	}
	if (!/^[0-9a-f:.]+(%\w+)?$/i.test(text) || !text.includes(':')) return null;
	let [address] = text.split('%');
	const dotted = /^(.*:)(\d+\.\d+\.\d+\.\d+)$/.exec(address);
	if (dotted) {
		const four = parse(dotted[2]);
		if (!four) return null;
		address = dotted[1] + ((four[0] << 8) | four[1]).toString(16) + ':' + ((four[2] << 8) | four[3]).toString(16);
	}
	const halves = address.split('::');
	if (halves.length > 2) return null;
	const groups = (s) => (s ? s.split(':') : []);
	const head = groups(halves[0]);
	const tail = halves.length === 2 ? groups(halves[1]) : [];
	const missing = 8 - head.length - tail.length;
	if (halves.length === 2 ? missing < 1 : missing !== 0) return null;
	const all = [...head, ...Array(missing).fill('0'), ...tail];
	if (!all.every((g) => /^[0-9a-f]{1,4}$/i.test(g))) return null;
	return all.flatMap((g) => [parseInt(g, 16) >> 8, parseInt(g, 16) & 255]);
}

// network reads an address or a CIDR: {bytes, bits}, or null.
export function network(text) {
	const [address, length, more] = text.split('/');
	const bytes = parse(address);
	if (!bytes || more !== undefined) return null;
	if (length === undefined) return { bytes, bits: bytes.length * 8 };
	if (!/^\d{1,3}$/.test(length) || Number(length) > bytes.length * 8) return null;
	return { bytes, bits: Number(length) };
}

// host is the address of a client without its port.
function host(client) {
	if (client.startsWith('[')) return client.slice(1, client.indexOf(']'));
	const colon = client.lastIndexOf(':');
	return colon >= 0 && client.indexOf(':') === colon ? client.slice(0, colon) : client;
}

function within(net, bytes) {
	if (!bytes || bytes.length !== net.bytes.length) return false;
	for (let i = 0, left = net.bits; left > 0; i++, left -= 8) {
		const mask = left >= 8 ? 255 : (255 << (8 - left)) & 255;
		if ((bytes[i] & mask) !== (net.bytes[i] & mask)) return false;
	}
	return true;
}

// clientOf is what of a search means the client, or "".
export function clientOf(search) {
	const text = search.text.trim();
	return network(text) ? text : '';
}

// matcher returns a function that reports whether a connection is what {text, service, key} asks for.
export function matcher({ text, service, key }) {
	const net = network(text.trim());
	const words = net ? [] : text.toLowerCase().split(/\s+/).filter(Boolean);
	return (row) => {
		if (service && row.service !== service) return false;
		if (key && row.key !== key) return false;
		if (net) return within(net, (row.address ??= parse(host(row.client))));
		if (words.length === 0) return true;
		const all = `${row.client} ${row.service} ${row.target} ${row.key || ''} ${row.state} ${row.id}`.toLowerCase();
		return words.every((w) => all.includes(w));
	};
}
