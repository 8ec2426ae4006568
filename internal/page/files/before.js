// What has to be known before the first paint: the colours and the language.
'use strict';
(function () {
	const kept = (name) => {
		try {
			return localStorage.getItem('reverser.' + name);
		} catch {
			return null; // a browser that keeps nothing
		}
	};
	const theme = kept('theme');
	if (theme === 'light' || theme === 'dark') document.documentElement.dataset.theme = theme;
	const lang = kept('lang') || (/^zh\b/i.test(navigator.language) ? 'zh' : 'en');
	document.documentElement.lang = lang === 'zh' ? 'zh-CN' : 'en';
})();
