package admin

import (
	"net/http/httptest"
	"strings"
	"testing"
)

// TestWordsOfBadRequests: who asks is told in words of the API, not in those of the code.
func TestWordsOfBadRequests(t *testing.T) {
	for body, want := range map[string]string{
		`[]`:                      "it is of the type array, and should be an object",
		`"a"`:                     "it is of the type string, and should be an object",
		`{"name":1.5}`:            "name is of the type number, and should be a string",
		`{"allow":"tcp/9000"}`:    "allow is of the type string, and should be an array",
		`{"max_services":"2"}`:    "max_services is of the type string, and should be a number",
		`{"nam":"a"}`:             `unknown field "nam"`,
		`{"name":"a"} {}`:         "there is more after the JSON",
		``:                        "it has no body",
		`{"allow":["a",{"b":1}]}`: "allow is of the type object, and should be a string",
	} {
		w := httptest.NewRecorder()
		var k NewKey
		if read(w, httptest.NewRequest("POST", "/", strings.NewReader(body)), &k) {
			t.Errorf("%s is taken", body)
		}
		if got := w.Body.String(); w.Code != 400 || !strings.Contains(strings.ReplaceAll(got, `\"`, `"`), want) || strings.Contains(got, "admin.") || strings.Contains(got, " Go ") {
			t.Errorf("%s: %d %s; want %q", body, w.Code, got, want)
		}
	}
	for query, want := range map[string]string{
		"service=foo": `service "foo" is neither`,
		"service=":    "service is empty",
	} {
		if _, err := parseWhich(query); err == nil || !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%s: %v; want %s", query, err, want)
		}
	}
}
