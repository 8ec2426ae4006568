// The tests here hold openapi.yaml to what a live process answers. They are a module of their own, so that the program's own module has nothing
// of what that takes.
module reverser/e2e/openapi

go 1.26.6

replace reverser => ../..

require (
	github.com/getkin/kin-openapi v0.153.0
	reverser v0.0.0
)

require (
	github.com/go-openapi/jsonpointer v0.22.5 // indirect
	github.com/go-openapi/swag/jsonname v0.25.5 // indirect
	github.com/santhosh-tekuri/jsonschema/v6 v6.0.3 // indirect
	go.yaml.in/yaml/v4 v4.0.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
)
