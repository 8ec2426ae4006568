module reverser/packaging

go 1.26.6

require (
	github.com/CycloneDX/cyclonedx-go v0.12.0
	github.com/tc-hib/winres v0.3.1
)

require (
	github.com/nfnt/resize v0.0.0-20180221191011-83c6a9932646 // indirect
	golang.org/x/image v0.12.0 // indirect
)
