package main

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"math"

	"github.com/tc-hib/winres"
	"github.com/tc-hib/winres/version"
)

// manifest says how Windows shall run the program: as whoever starts it, never asking for more; paths longer than 260
// characters; and UTF-8 where a program would otherwise get the code page of the system's language.
const manifest = `<?xml version="1.0" encoding="UTF-8" standalone="yes"?>
<assembly xmlns="urn:schemas-microsoft-com:asm.v1" manifestVersion="1.0">
  <assemblyIdentity type="win32" name="%s" version="%s" processorArchitecture="*"/>
  <description>%s</description>
  <trustInfo xmlns="urn:schemas-microsoft-com:asm.v3">
    <security>
      <requestedPrivileges>
        <requestedExecutionLevel level="asInvoker" uiAccess="false"/>
      </requestedPrivileges>
    </security>
  </trustInfo>
  <compatibility xmlns="urn:schemas-microsoft-com:compatibility.v1">
    <application>
      <supportedOS Id="{8e0f7a12-bfb3-4fe8-b9a5-48fd50a15a9a}"/>
    </application>
  </compatibility>
  <application xmlns="urn:schemas-microsoft-com:asm.v3">
    <windowsSettings>
      <longPathAware xmlns="http://schemas.microsoft.com/SMI/2016/WindowsSettings">true</longPathAware>
      <activeCodePage xmlns="http://schemas.microsoft.com/SMI/2019/WindowsSettings">UTF-8</activeCodePage>
    </windowsSettings>
  </application>
</assembly>
`

// Languages of the texts in a version resource.
const (
	english = 0x0409
	chinese = 0x0804
)

// windowsResource is an object file that the linker puts into the program: icon, version and manifest.
func (r *release) windowsResource(p platform) ([]byte, error) {
	var rs winres.ResourceSet
	var sizes []image.Image
	for _, size := range []int{256, 64, 48, 32, 24, 16} {
		sizes = append(sizes, drawIcon(size))
	}
	icon, err := winres.NewIconFromImages(sizes)
	if err != nil {
		return nil, err
	}
	if err := rs.SetIcon(winres.ID(1), icon); err != nil {
		return nil, err
	}
	info := version.Info{FileVersion: r.numbers(), ProductVersion: r.numbers(), Timestamp: r.date}
	info.Flags.Prerelease = bytes.ContainsAny([]byte(r.version), "-+")
	for lang, description := range map[uint16]string{english: summary, chinese: summaryChinese} {
		for key, value := range map[string]string{
			version.CompanyName:      publisher,
			version.FileDescription:  description,
			version.FileVersion:      r.plainVersion(),
			version.InternalName:     program,
			version.LegalCopyright:   "Apache License 2.0",
			version.OriginalFilename: p.exe(),
			version.ProductName:      program,
			version.ProductVersion:   r.plainVersion(),
		} {
			if err := info.Set(lang, key, value); err != nil {
				return nil, err
			}
		}
	}
	rs.SetVersionInfo(info)
	n := r.numbers()
	text := fmt.Sprintf(manifest, program, fmt.Sprintf("%d.%d.%d.%d", n[0], n[1], n[2], n[3]), summary)
	if err := rs.Set(winres.RT_MANIFEST, winres.ID(1), winres.LCIDDefault, []byte(text)); err != nil {
		return nil, err
	}
	var b bytes.Buffer
	if err := rs.WriteObject(&b, winres.Arch(p.arch)); err != nil {
		return nil, err
	}
	return b.Bytes(), nil
}

// drawIcon draws the icon: an arrow that comes from the right, turns, and leads back, on a round square.
func drawIcon(size int) image.Image {
	const samples = 4 // in each direction, so that edges are smooth
	img := image.NewNRGBA(image.Rect(0, 0, size, size))
	for y := range size {
		for x := range size {
			var ground, mark int
			for i := range samples * samples {
				u := (float64(x) + (float64(i%samples)+0.5)/samples) / float64(size)
				v := (float64(y) + (float64(i/samples)+0.5)/samples) / float64(size)
				if onGround(u, v) {
					ground++
					if onArrow(u, v) {
						mark++
					}
				}
			}
			if ground == 0 {
				continue
			}
			mix := func(a, b int) uint8 { return uint8((a*(ground-mark) + b*mark) / ground) }
			img.SetNRGBA(x, y, color.NRGBA{mix(0x14, 0xff), mix(0x5a, 0xff), mix(0x78, 0xff), uint8(255 * ground / (samples * samples))})
		}
	}
	return img
}

// onGround reports whether a point of the unit square lies on the square with round corners.
func onGround(u, v float64) bool {
	const edge, radius = 0.03, 0.2
	dx := max(edge+radius-u, 0, u-(1-edge-radius))
	dy := max(edge+radius-v, 0, v-(1-edge-radius))
	return math.Hypot(dx, dy) <= radius
}

// onArrow reports whether a point lies on the arrow: a line in, half a circle, a line out with a head.
func onArrow(u, v float64) bool {
	const (
		upper, lower = 0.34, 0.66 // the lines
		half         = 0.055      // of their width
		turn         = 0.38       // where they meet the half circle
		end          = 0.80
	)
	switch {
	case u >= turn && u <= end && math.Abs(v-upper) <= half:
		return true
	case u >= turn && u <= end-0.12 && math.Abs(v-lower) <= half:
		return true
	case u < turn:
		return math.Abs(math.Hypot(u-turn, v-0.5)-(lower-upper)/2) <= half
	}
	head := (end + 0.04 - u) * 0.85 // half of the head's height here
	return u >= end-0.16 && head >= 0 && math.Abs(v-lower) <= head
}
