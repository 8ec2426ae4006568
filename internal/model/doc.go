// Package model searches small models of the link's protocol exhaustively. It has tests only, and nothing of the program
// imports it: the models are written a second time, by their rules alone, so that a mistake in the code is not copied.
//
// data_test.go has the path of the data of one stream over connections that break, life_test.go the life of one stream's
// id. Each knows variants in which a rule is missing, and says what then goes wrong.
package model
