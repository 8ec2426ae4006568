// Package archtest holds what may import what. Its test has one table with a line and a reason for every package of the
// module (docs/ARCHITECTURE.md says the same in words); there is nothing to import here.
package archtest
