// Package deploy has no code. Its directory holds the files with which the program is run in containers (docs/CONTAINERS.md) and watched
// by Prometheus (docs/METRICS.md), and the tests of these files and of the image.
package deploy
