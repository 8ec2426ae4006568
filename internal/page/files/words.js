// The words of the page. t(name) is reactive: what shows a word is shown anew when the language changes.
import { signal } from './lib/signals.js';
import { en } from './words-en.js';
import { zh } from './words-zh.js';

const all = { en, zh };

export const lang = signal(document.documentElement.lang.startsWith('zh') ? 'zh' : 'en');

export function speak(language) {
	lang.value = language;
	document.documentElement.lang = language === 'zh' ? 'zh-CN' : 'en';
	keep('lang', language);
}

// t returns the words of that name, with {field} replaced by fields.field. A name without words is returned as it is.
export function t(name, fields) {
	const words = all[lang.value][name] ?? en[name] ?? name;
	return fields ? words.replace(/\{(\w+)\}/g, (_, field) => fields[field] ?? '') : words;
}

// keep remembers a choice in this browser, where it keeps anything.
export function keep(name, value) {
	try {
		if (value === '') localStorage.removeItem('reverser.' + name);
		else localStorage.setItem('reverser.' + name, value);
	} catch {
		// it holds until the page is closed
	}
}

export function kept(name) {
	try {
		return localStorage.getItem('reverser.' + name);
	} catch {
		return null;
	}
}
