package netlab

import (
	"encoding/binary"
	"fmt"
	"net"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// xdp is a program at a device that drops some of the packets that come in there. It is attached by a descriptor, so it
// goes when that is closed.
type xdp struct{ link int }

func (x *xdp) close() {
	if x != nil {
		unix.Close(x.link)
	}
}

// dropAt loads and attaches a program that asks for a random number for every packet. It must run before the network
// stack joins small packets to big ones, or a loss would hit 64 KB at once: at the driver of the veth.
func dropAt(device string, fraction float64) (*xdp, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	threshold := int64(min(fraction, 1) * 0xffffffff)
	var p xdpCode
	p.insn(0x85, 0, 0, 7)                 // r0 = bpf_get_prandom_u32()
	p.insn(0x26, 0, 2, uint32(threshold)) // if w0 > threshold goto +2
	return p.drop(dev)
}

// dropLargeAt drops what has more than size bytes as an IP packet.
func dropLargeAt(device string, size int) (*xdp, error) {
	dev, err := net.InterfaceByName(device)
	if err != nil {
		return nil, err
	}
	const ethernet = 14
	var p xdpCode
	p.insn(0x61, 0x12, 0, 0)                  // r2 = ctx->data
	p.insn(0x61, 0x10, 4, 0)                  // r0 = ctx->data_end
	p.insn(0x1f, 0x20, 0, 0)                  // r0 -= r2
	p.insn(0xb5, 0, 2, uint32(size+ethernet)) // if r0 <= size goto +2
	return p.drop(dev)
}

// xdpCode is the beginning of a program, which jumps over two instructions for a packet that passes.
type xdpCode []byte

func (p *xdpCode) insn(op, registers byte, off int16, imm uint32) {
	*p = append(*p, op, registers)
	*p = binary.NativeEndian.AppendUint16(*p, uint16(off))
	*p = binary.NativeEndian.AppendUint32(*p, imm)
}

// drop ends the program, loads it and attaches it.
func (p xdpCode) drop(dev *net.Interface) (*xdp, error) {
	p.insn(0xb7, 0, 0, 1) // r0 = XDP_DROP
	p.insn(0x95, 0, 0, 0) // return
	p.insn(0xb7, 0, 0, 2) // r0 = XDP_PASS
	p.insn(0x95, 0, 0, 0) // return
	code := []byte(p)
	license := []byte("GPL\x00")
	load := struct { // the beginning of union bpf_attr
		kind, count   uint32
		code, license uint64
		rest          [3]uint64
	}{kind: unix.BPF_PROG_TYPE_XDP, count: uint32(len(code) / 8),
		code: uint64(uintptr(unsafe.Pointer(&code[0]))), license: uint64(uintptr(unsafe.Pointer(&license[0])))}
	prog, err := bpf(unix.BPF_PROG_LOAD, unsafe.Pointer(&load), unsafe.Sizeof(load))
	runtime.KeepAlive(code)
	runtime.KeepAlive(license)
	if err != nil {
		return nil, fmt.Errorf("load an XDP program: %w", err)
	}
	defer unix.Close(prog)
	attach := struct{ prog, ifindex, kind, flags uint32 }{uint32(prog), uint32(dev.Index), unix.BPF_XDP, unix.XDP_FLAGS_DRV_MODE}
	link, err := bpf(unix.BPF_LINK_CREATE, unsafe.Pointer(&attach), unsafe.Sizeof(attach))
	if err != nil {
		return nil, fmt.Errorf("attach an XDP program to %s: %w", dev.Name, err)
	}
	return &xdp{link}, nil
}

func bpf(cmd uintptr, attr unsafe.Pointer, size uintptr) (int, error) {
	fd, _, errno := unix.Syscall(unix.SYS_BPF, cmd, uintptr(attr), size)
	if errno != 0 {
		return 0, errno
	}
	return int(fd), nil
}
