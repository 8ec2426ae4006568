// Light or dark: as the system has it, or as was chosen.
import { signal } from './html.js';
import { keep } from './words.js';

// choice is '', 'light' or 'dark'; theme is what it comes to.
export const choice = signal(document.documentElement.dataset.theme || '');
const system = matchMedia('(prefers-color-scheme: dark)');
export const theme = signal('');

function settle() {
	theme.value = choice.value || (system.matches ? 'dark' : 'light');
}

settle();
system.addEventListener('change', settle);

export function paint(look) {
	choice.value = look;
	if (look) document.documentElement.dataset.theme = look;
	else delete document.documentElement.dataset.theme;
	keep('theme', look);
	settle();
}
