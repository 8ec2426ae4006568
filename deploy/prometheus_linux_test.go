package deploy

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"reverser/e2e/process"
)

const folder = "prometheus"

// needPrometheus skips the test where there is none. In CI it fails.
func needPrometheus(t *testing.T) {
	t.Helper()
	for _, name := range []string{"prometheus", "promtool"} {
		if _, err := exec.LookPath(name); err != nil {
			text := name + " is missing; on Debian: apt install prometheus"
			if os.Getenv("CI") == "true" {
				t.Fatal(text)
			}
			t.Skip("SKIPPED: " + text)
		}
	}
}

// rule is an alert of rules.yaml.
type rule struct {
	Alert       string
	Expr        string
	Annotations map[string]string
}

func readRules(t *testing.T) []rule {
	t.Helper()
	var file struct {
		Groups []struct{ Rules []rule }
	}
	if err := yaml.Unmarshal(read(t, filepath.Join(folder, "rules.yaml")), &file); err != nil {
		t.Fatal(err)
	}
	if len(file.Groups) != 1 || len(file.Groups[0].Rules) == 0 {
		t.Fatalf("rules.yaml has %d groups", len(file.Groups))
	}
	return file.Groups[0].Rules
}

// dashboardExpr is an expression of the dashboard.
type dashboardExpr struct{ panel, expr string }

func readDashboard(t *testing.T) (all []dashboardExpr) {
	t.Helper()
	var d struct {
		Panels []struct {
			ID      int
			Title   string
			GridPos struct{ X, Y, W, H int }
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(read(t, filepath.Join(folder, "dashboard.json")), &d); err != nil {
		t.Fatal(err)
	}
	ids := make(map[int]bool)
	for _, p := range d.Panels {
		if p.Title == "" || ids[p.ID] || len(p.Targets) == 0 || p.GridPos.W == 0 || p.GridPos.X+p.GridPos.W > 24 {
			t.Errorf("panel %d, %q, at %+v: it needs an id of its own, a title, a place and an expression", p.ID, p.Title, p.GridPos)
		}
		ids[p.ID] = true
		for _, target := range p.Targets {
			all = append(all, dashboardExpr{p.Title, target.Expr})
		}
	}
	return all
}

// TestPrometheusFiles: promtool takes configuration and rules, each alert has a test in which it fires, and all alerts one in which they
// do not.
func TestPrometheusFiles(t *testing.T) {
	needPrometheus(t)
	for _, args := range [][]string{
		{"check", "config", "--syntax-only", "prometheus.yaml"},
		{"check", "rules", "rules.yaml"},
		{"test", "rules", "rules_test.yaml"},
	} {
		cmd := exec.Command("promtool", args...)
		cmd.Dir = folder
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
	var tests struct {
		Tests []struct {
			AlertRuleTest []struct {
				Alertname string
				ExpAlerts []any `yaml:"exp_alerts"`
			} `yaml:"alert_rule_test"`
		}
	}
	if err := yaml.Unmarshal(read(t, filepath.Join(folder, "rules_test.yaml")), &tests); err != nil {
		t.Fatal(err)
	}
	fires, quiet := make(map[string]bool), make(map[string]bool)
	for _, test := range tests.Tests {
		for _, a := range test.AlertRuleTest {
			if len(a.ExpAlerts) > 0 {
				fires[a.Alertname] = true
			} else {
				quiet[a.Alertname] = true
			}
		}
	}
	for _, r := range readRules(t) {
		if !fires[r.Alert] || !quiet[r.Alert] {
			t.Errorf("%s: there is a test in which it fires: %v, in which it does not: %v", r.Alert, fires[r.Alert], quiet[r.Alert])
		}
		if r.Annotations["summary"] == "" || r.Annotations["description"] == "" {
			t.Errorf("%s needs a summary and a description", r.Alert)
		}
	}
}

var metricName = regexp.MustCompile(`\breverser_[a-z_]+`)

// TestMetricsAreDescribed: what rules and dashboard ask for is in docs/METRICS.md.
func TestMetricsAreDescribed(t *testing.T) {
	doc := string(read(t, filepath.Join("..", "docs", "METRICS.md")))
	for _, r := range readRules(t) {
		for _, name := range metricName.FindAllString(r.Expr, -1) {
			if !strings.Contains(doc, "`"+name+"`") && name != "reverser_pressure_limit" {
				t.Errorf("%s asks for %s, which docs/METRICS.md does not have", r.Alert, name)
			}
		}
	}
}

// prometheus is a running one.
type prometheus struct {
	*testing.T
	url string
}

// ask returns how many series an expression has.
func (p *prometheus) ask(expr string) (n int, err error) {
	resp, err := http.Get(p.url + "/api/v1/query?query=" + url.QueryEscape(expr))
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          struct{ Result []any }
	}
	b, err := io.ReadAll(resp.Body)
	if err == nil {
		err = json.Unmarshal(b, &answer)
	}
	if err == nil && answer.Status != "success" {
		err = fmt.Errorf("%s %s", answer.Status, answer.Error)
	}
	return len(answer.Data.Result), err
}

func (p *prometheus) await(what string, cond func() bool) {
	p.Helper()
	for begun := time.Now(); !cond(); time.Sleep(100 * time.Millisecond) {
		if time.Since(begun) > patience {
			p.Fatalf("%s: not within %s", what, patience)
		}
	}
}

// TestPrometheus: a Prometheus scrapes a proxy and a bridge with their tokens while users come, and every expression of rules and
// dashboard has an answer.
func TestPrometheus(t *testing.T) {
	needPrometheus(t)
	dir := t.TempDir()
	bin := filepath.Join(dir, "reverser")
	if out, err := exec.Command("go", "build", "-o", bin, "../cmd/reverser").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v\n%s", err, out)
	}
	start := func(name string, args ...string) *process.Process {
		t.Helper()
		path := bin
		if name == "prometheus" {
			path = name
		}
		p := process.New(name, path, nil, args...)
		if err := p.Start(nil); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			p.Kill()
			if t.Failed() {
				t.Logf("%s said:\n%s", name, p.Stderr.String())
			}
		})
		return p
	}
	state := func(role string) string { return filepath.Join(dir, role) }
	link, public, dead, admins := freePort(t), freePort(t), freePort(t), map[string]int{"proxy": freePort(t), "bridge": freePort(t)}
	token, err := exec.Command(bin, "key", "add", "nas", "--allow", fmt.Sprintf("tcp/%d", public), "--allow", fmt.Sprintf("tcp/%d", dead), "--state", state("proxy")).Output()
	if err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "token"), string(token), 0o600)
	if out, err := exec.Command(bin, "key", "add", "guest", "--allow", "tcp/1", "--expires", "3d", "--state", state("proxy")).CombinedOutput(); err != nil {
		t.Fatalf("key add: %v\n%s", err, out)
	}
	start("proxy", "proxy", "--listen", loopback(link), "--admin", loopback(admins["proxy"]), "--access-log", filepath.Join(dir, "access.log"), "--state", state("proxy"))
	start("bridge", "bridge", "--token-file", filepath.Join(dir, "token"), "--proxy", loopback(link), "--admin", loopback(admins["bridge"]), "--state", state("bridge"),
		fmt.Sprintf("%d=%d", public, echo(t)), fmt.Sprintf("%d=%d", dead, freePort(t)))

	// The configuration is the one of the repository, for these ports and both roles, and scrapes more often.
	var config map[string]any
	if err := yaml.Unmarshal(read(t, filepath.Join(folder, "prometheus.yaml")), &config); err != nil {
		t.Fatal(err)
	}
	config["global"] = map[string]any{"scrape_interval": "1s", "evaluation_interval": "1s"}
	job := config["scrape_configs"].([]any)[0].(map[string]any)
	var jobs []any
	for role, port := range admins {
		of := make(map[string]any)
		for k, v := range job {
			of[k] = v
		}
		of["job_name"] = "reverser-" + role
		of["authorization"] = map[string]any{"credentials_file": filepath.Join(state(role), "admin.token")}
		of["static_configs"] = []any{map[string]any{"targets": []string{loopback(port)}}}
		jobs = append(jobs, of)
	}
	config["scrape_configs"] = jobs
	text, err := yaml.Marshal(config)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "prometheus.yaml")
	write(t, file, string(text), 0o600)
	write(t, filepath.Join(dir, "rules.yaml"), string(read(t, filepath.Join(folder, "rules.yaml"))), 0o600)
	p := &prometheus{t, "http://" + loopback(freePort(t))}
	p.await("both have a token", func() bool {
		for role := range admins {
			if _, err := os.Stat(filepath.Join(state(role), "admin.token")); err != nil {
				return false
			}
		}
		return true
	})
	if out, err := exec.Command("promtool", "check", "config", file).CombinedOutput(); err != nil {
		t.Errorf("promtool check config: %v\n%s", err, out)
	}
	start("prometheus", "--config.file="+file, "--storage.tsdb.path="+filepath.Join(dir, "data"), "--web.listen-address="+strings.TrimPrefix(p.url, "http://"), "--log.level=error")

	// Without the token there is nothing.
	resp, err := http.Get(fmt.Sprintf("http://%s/metrics", loopback(admins["proxy"])))
	for begun := time.Now(); err != nil && time.Since(begun) < patience; time.Sleep(50 * time.Millisecond) {
		resp, err = http.Get(fmt.Sprintf("http://%s/metrics", loopback(admins["proxy"])))
	}
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusUnauthorized {
		t.Errorf("a scrape without the token: %s, want 401", resp.Status)
	}

	has := func(expr string) bool {
		n, err := p.ask(expr)
		return err == nil && n > 0
	}
	p.await("both are scraped", func() bool { return has(`count(up{job=~"reverser.*"} == 1) == 2`) })
	p.await("the service is up", func() bool {
		return has(fmt.Sprintf(`count(reverser_service_up{service="tcp/%d"} == 1) == 2`, public)) && has(`count(reverser_link_up == 1) == 2`) && has(`reverser_link_up{key="guest"} == 0`)
	})
	exchange(t, dial(t, public), "a connection that stays") // until the end of the test
	user := func(port int) {
		c, err := net.DialTimeout("tcp", loopback(port), patience)
		if err != nil {
			return // reset before it was there
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(patience))
		io.WriteString(c, "a connection that ends")
		c.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, c)
	}
	expand := strings.NewReplacer("$__rate_interval", "10s", "$job", ".*", "$instance", ".*").Replace
	// What is only there when something runs short, or has an end.
	rare := regexp.MustCompile(`reverser_(pressure|certificate_expiry)_`)
	for _, e := range readDashboard(t) {
		expr := expand(e.expr)
		if n, err := p.ask(expr); err != nil {
			t.Errorf("%s: %s: %v", e.panel, expr, err)
		} else if n == 0 && !rare.MatchString(expr) {
			p.await(e.panel+": "+expr, func() bool {
				user(public)
				user(dead)
				return has(expr)
			})
		}
	}
	p.await("bytes move while a connection lives", func() bool {
		return has(fmt.Sprintf(`reverser_bytes_total{service="tcp/%d",direction="received"} > 0`, public))
	})
	p.await("a key that ends is told of", func() bool { return has(`ALERTS{alertname="ReverserKeyExpiring",key="guest"}`) })
	p.await("users are refused", func() bool {
		return has(fmt.Sprintf(`reverser_refused_total{service="tcp/%d",reason="target-refused"} > 0`, dead))
	})

	for _, r := range readRules(t) {
		if _, err := p.ask(r.Expr); err != nil {
			t.Errorf("%s: %s: %v", r.Alert, r.Expr, err)
		}
	}
	p.await("all rules were evaluated, and are well", func() bool {
		resp, err := http.Get(p.url + "/api/v1/rules")
		if err != nil {
			return false
		}
		defer resp.Body.Close()
		var answer struct {
			Data struct {
				Groups []struct {
					Rules []struct{ Name, Health, LastError string }
				}
			}
		}
		if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil || len(answer.Data.Groups) != 1 {
			return false
		}
		for _, r := range answer.Data.Groups[0].Rules {
			if r.Health == "err" {
				t.Fatalf("%s: %s", r.Name, r.LastError)
			}
			if r.Health != "ok" {
				return false
			}
		}
		return len(answer.Data.Groups[0].Rules) == len(readRules(t))
	})

	// Every metric that the document names was scraped, but for those that are rare.
	names := make(map[string]bool)
	for _, line := range strings.Split(string(read(t, filepath.Join("..", "docs", "METRICS.md"))), "\n") {
		if cells := strings.Split(line, "|"); len(cells) > 2 && strings.HasPrefix(line, "| `reverser_") {
			for _, name := range metricName.FindAllString(cells[1], -1) {
				names[name] = true
			}
		}
	}
	absent := []string{"reverser_pressure_used", "reverser_certificate_expiry_timestamp_seconds",
		"reverser_reload_failed", "reverser_reload_timestamp_seconds"}
	if len(names) < 25 {
		t.Errorf("docs/METRICS.md names %d metrics", len(names))
	}
	for name := range names {
		if !slices.Contains(absent, name) && !has(name) && !has(name+"_count") {
			t.Errorf("docs/METRICS.md has %s, and nothing of it was scraped", name)
		}
	}
	// promtool has an eye on names and types.
	req, err := http.NewRequest("GET", fmt.Sprintf("http://%s/metrics", loopback(admins["proxy"])), nil)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(read(t, filepath.Join(state("proxy"), "admin.token")))))
	if resp, err = http.DefaultClient.Do(req); err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	lint := exec.Command("promtool", "check", "metrics")
	lint.Stdin = resp.Body
	if out, err := lint.CombinedOutput(); err != nil || resp.StatusCode != http.StatusOK {
		t.Errorf("promtool check metrics: %v, %s\n%s", err, resp.Status, out)
	}
	http.DefaultClient.CloseIdleConnections()
}
