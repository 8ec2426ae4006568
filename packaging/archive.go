package main

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"time"
)

// sumsFile is the name of the checksums, as sha256sum -c takes them.
const sumsFile = "SHA256SUMS"

// byName returns the files in the order of their names.
func byName(files []file) []file {
	return slices.SortedFunc(slices.Values(files), func(a, b file) int { return strings.Compare(a.name, b.name) })
}

func (f file) mode() int64 {
	if f.exec {
		return 0o755
	}
	return 0o644
}

// tarred is a tar.gz with the files in a directory, all of root and of one time.
func tarred(dir string, files []file, date time.Time) ([]byte, error) {
	var b bytes.Buffer
	gz, err := gzip.NewWriterLevel(&b, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	tw := tar.NewWriter(gz)
	made := map[string]bool{}
	for _, f := range byName(files) {
		name := dir + "/" + f.name
		for i, c := range name {
			if parent := name[:i]; c == '/' && !made[parent] {
				made[parent] = true
				h := &tar.Header{Typeflag: tar.TypeDir, Name: parent + "/", Mode: 0o755, ModTime: date, Format: tar.FormatUSTAR}
				if err := tw.WriteHeader(h); err != nil {
					return nil, err
				}
			}
		}
		h := &tar.Header{Name: name, Mode: f.mode(), Size: int64(len(f.data)), ModTime: date, Format: tar.FormatUSTAR}
		if err := tw.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := tw.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := tw.Close(); err != nil {
		return nil, err
	}
	if err := gz.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// zipped is a zip with the files, all of one time.
func zipped(files []file, date time.Time) ([]byte, error) {
	var b bytes.Buffer
	zw := zip.NewWriter(&b)
	for _, f := range byName(files) {
		h := &zip.FileHeader{Name: f.name, Method: zip.Deflate, Modified: date}
		h.SetMode(0o644)
		if f.exec {
			h.SetMode(0o755)
		}
		w, err := zw.CreateHeader(h)
		if err != nil {
			return nil, err
		}
		if _, err := w.Write(f.data); err != nil {
			return nil, err
		}
	}
	if err := zw.Close(); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

func sum(data []byte) string { return fmt.Sprintf("%x", sha256.Sum256(data)) }

func checksums(files []file) file {
	var b bytes.Buffer
	for _, f := range files {
		fmt.Fprintf(&b, "%s  %s\n", sum(f.data), f.name)
	}
	return file{name: sumsFile, data: b.Bytes()}
}
