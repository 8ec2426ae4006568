// Numbers and times for people, as the commands of reverser print them.
import { lang, t } from './words.js';

// size is a byte count in the largest unit that leaves a whole number before the point.
export function size(n) {
	if (!(n >= 0)) return '–';
	if (n < 1000) return `${Math.round(n)} B`;
	let unit = '';
	for (unit of ['kB', 'MB', 'GB', 'TB', 'PB', 'EB']) {
		n /= 1000;
		if (n < 999.95) break;
	}
	return `${n.toFixed(1)} ${unit}`;
}

// rate is bytes a second; one that is not known yet, or is none, is a dash.
export function rate(n) {
	return n > 0 ? size(n) + '/s' : '–';
}

// speedOf is a rate that is worth showing as 0.
export function speedOf(n) {
	return n === null || n === undefined ? '–' : size(n) + '/s';
}

// span is a duration in its two largest units.
export function span(seconds) {
	const s = Math.max(0, Math.floor(seconds));
	const [d, h, m, sec] = lang.value === 'zh' ? ['天', '小时', '分', '秒'] : ['d ', 'h ', 'm ', 's'];
	const two = (a, unit, b, less) => `${a}${unit}${b}${less}`.trim();
	if (s >= 86400) return two(Math.floor(s / 86400), d, Math.floor((s % 86400) / 3600), h);
	if (s >= 3600) return two(Math.floor(s / 3600), h, Math.floor((s % 3600) / 60), m);
	if (s >= 60) return two(Math.floor(s / 60), m, s % 60, sec);
	return `${s}${sec}`;
}

// moment is a time for a list of what happened lately: without the date where that is today's.
export function moment(at) {
	const then = Date.parse(at);
	return new Date(then).toDateString() === new Date().toDateString() ? clock(then) : when(then);
}

// since is how long ago a time of the process is.
export function since(at) {
	const then = Date.parse(at);
	return then > 0 ? span((Date.now() - then) / 1000) : '–';
}

// until is how many seconds there are until a time of the process; NaN if there is none.
export function until(at) {
	return (Date.parse(at) - Date.now()) / 1000;
}

const known = new Map(); // Intl is slow to make

function formatter(kind, make) {
	const id = lang.value + kind;
	if (!known.has(id)) known.set(id, make(lang.value === 'zh' ? 'zh-CN' : undefined));
	return known.get(id);
}

// count is a whole number with groups.
export function count(n) {
	return formatter('count', (l) => new Intl.NumberFormat(l, { maximumFractionDigits: 0 })).format(n);
}

// when is a date and time of the place where the page is read.
export function when(at) {
	const then = typeof at === 'number' ? at : Date.parse(at);
	if (!(then > 0)) return '–';
	return formatter('when', (l) => new Intl.DateTimeFormat(l, { dateStyle: 'medium', timeStyle: 'medium' })).format(then);
}

export function day(at) {
	const then = typeof at === 'number' ? at : Date.parse(at);
	if (!(then > 0)) return '–';
	return formatter('day', (l) => new Intl.DateTimeFormat(l, { dateStyle: 'medium' })).format(then);
}

export function clock(at) {
	return formatter('clock', (l) => new Intl.DateTimeFormat(l, { timeStyle: 'medium' })).format(at);
}

// state is a state of the API in the reader's language; one that this page does not know is shown as it is.
export function state(word) {
	const said = t('state.' + word);
	return said === 'state.' + word ? word : said;
}
