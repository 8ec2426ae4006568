package web

import (
	"reflect"
	"testing"

	"reverser/internal/grammar"
)

// TestOrdinary: an option that simple requests know nothing of leaves them to net/http. A new option fails here until ordinary asks for it,
// or until simple requests do it, too.
func TestOrdinary(t *testing.T) {
	if !ordinary(&grammar.ProxyOptions{}) {
		t.Error("a service without options is not ordinary")
	}
	simple := map[string]string{
		"AnswerTime": "it is the pool's, which simple requests use as well",
		"HSTS":       "it is for https/ alone, and simple requests come without TLS",
	}
	for field := range reflect.TypeFor[grammar.ProxyOptions]().Fields() {
		var o grammar.ProxyOptions
		v := reflect.ValueOf(&o).Elem().FieldByIndex(field.Index)
		switch v.Kind() {
		case reflect.Bool:
			v.SetBool(true)
		case reflect.String:
			v.SetString("a")
		case reflect.Int64:
			v.SetInt(1)
		case reflect.Slice:
			v.Set(reflect.MakeSlice(field.Type, 1, 1))
		case reflect.Map:
			v.Set(reflect.MakeMap(field.Type))
			v.SetMapIndex(reflect.New(field.Type.Key()).Elem(), reflect.New(field.Type.Elem()).Elem())
		default:
			t.Errorf("%s: this test has no value of type %v", field.Name, field.Type)
			continue
		}
		why, harmless := simple[field.Name]
		delete(simple, field.Name)
		switch got := ordinary(&o); {
		case harmless && !got:
			t.Errorf("a service with %s is not ordinary, though %s", field.Name, why)
		case !harmless && got:
			t.Errorf("ordinary does not know %s: it would be ignored for most requests", field.Name)
		}
	}
	for name := range simple {
		t.Errorf("ProxyOptions has no %s", name)
	}
}
