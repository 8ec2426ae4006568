//go:build !linux

package main

import "errors"

// run says that the comparison needs Linux before any of these matters.

type distance struct{ place }

func newDistance() (*distance, error) { return nil, errors.ErrUnsupported }

func (*distance) close() {}

func (*distance) set(string) error { return errors.ErrUnsupported }
