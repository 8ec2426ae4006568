#!/bin/sh
# Writes files/lib anew: the libraries of the page, from npm, as ES modules that import each other by relative paths.
# files/lib/README.md says what each is for and what is changed in it. It needs npm and sed.
set -eu
cd "$(dirname "$0")/files/lib"
from=$(mktemp -d)
trap 'rm -rf "$from"' EXIT
(cd "$from" && npm init -y && npm install --ignore-scripts --no-audit --no-fund \
	preact@11.2.0 htm@3.1.1 @preact/signals@2.11.4 @preact/signals-core@1.14.5 @tanstack/virtual-core@3.19.11 uplot@1.6.32) >/dev/null
from=$from/node_modules

# put FROM TO: without the reference to a map that is not here, and with relative imports.
put() {
	sed -e '/^\/\/# sourceMappingURL=/d' -e 's|//# sourceMappingURL=[^ ]*$||' \
		-e 's|from"preact/hooks"|from"./hooks.js"|g' -e 's|from"preact"|from"./preact.js"|g' -e 's|from"@preact/signals-core"|from"./signals-core.js"|g' \
		-e 's|process\.env\.NODE_ENV !== "production"|false|g' -e 's|from "\./|from "./virtual-|g' \
		"$from/$1" >"$2"
}
put preact/dist/preact.mjs preact.js
put preact/hooks/dist/hooks.mjs hooks.js
put htm/dist/htm.module.js htm.js
put @preact/signals/dist/signals.mjs signals.js
put @preact/signals-core/dist/signals-core.mjs signals-core.js
put @tanstack/virtual-core/dist/esm/index.js virtual-core.js
for part in lazy-measurements utils scroll-classifier ios-gesture; do
	put @tanstack/virtual-core/dist/esm/$part.js virtual-$part.js
done
put uplot/dist/uPlot.iife.min.js uplot.js
echo 'export default uPlot;' >>uplot.js
put uplot/dist/uPlot.min.css uplot.css
for name in preact htm @preact/signals @preact/signals-core @tanstack/virtual-core uplot; do
	cp "$from/$name/LICENSE" "LICENSE-$(echo "$name" | tr -d @ | tr / -)"
done
