package deploy

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"go.yaml.in/yaml/v3"
)

// What the files use of the formats of compose and Kubernetes. A key that is not here is one that was misspelt, or it belongs here too.
type (
	compose struct {
		Name     string
		Reverser any `yaml:"x-reverser"`
		Services map[string]composeService
		Networks map[string]struct{ Internal bool }
		Volumes  map[string]struct{}
		Secrets  map[string]struct{ File string }
	}
	composeService struct {
		Image           string
		Build           struct{ Context, Dockerfile string }
		ReadOnly        bool     `yaml:"read_only"`
		CapDrop         []string `yaml:"cap_drop"`
		SecurityOpt     []string `yaml:"security_opt"`
		MemLimit        string   `yaml:"mem_limit"`
		Restart         string
		StopGracePeriod string `yaml:"stop_grace_period"`
		Command         []string
		Ports           []string
		Networks        []string
		Volumes         []string
		Secrets         []string
		Tmpfs           []string
	}

	object struct {
		APIVersion string `yaml:"apiVersion"`
		Kind       string
		Metadata   struct {
			Name   string
			Labels map[string]string
		}
		Spec yaml.Node
	}
	deployment struct {
		Replicas int
		Strategy struct {
			Type          string
			RollingUpdate struct {
				MaxSurge       int `yaml:"maxSurge"`
				MaxUnavailable int `yaml:"maxUnavailable"`
			} `yaml:"rollingUpdate"`
		}
		Selector struct {
			MatchLabels map[string]string `yaml:"matchLabels"`
		}
		Template struct {
			Metadata struct{ Labels map[string]string }
			Spec     pod
		}
	}
	pod struct {
		AutomountServiceAccountToken  bool `yaml:"automountServiceAccountToken"`
		TerminationGracePeriodSeconds int  `yaml:"terminationGracePeriodSeconds"`
		SecurityContext               struct {
			RunAsNonRoot        bool                  `yaml:"runAsNonRoot"`
			FSGroup             int                   `yaml:"fsGroup"`
			FSGroupChangePolicy string                `yaml:"fsGroupChangePolicy"`
			SeccompProfile      struct{ Type string } `yaml:"seccompProfile"`
		} `yaml:"securityContext"`
		Containers []container
		Volumes    []struct {
			Name                  string
			PersistentVolumeClaim struct {
				ClaimName string `yaml:"claimName"`
			} `yaml:"persistentVolumeClaim"`
			EmptyDir struct {
				Medium    string
				SizeLimit string `yaml:"sizeLimit"`
			} `yaml:"emptyDir"`
			Secret struct {
				SecretName  string `yaml:"secretName"`
				DefaultMode int    `yaml:"defaultMode"`
			}
		}
	}
	container struct {
		Name  string
		Image string
		Args  []string
		Ports []struct {
			Name          string
			ContainerPort int `yaml:"containerPort"`
		}
		ReadinessProbe  probe `yaml:"readinessProbe"`
		LivenessProbe   probe `yaml:"livenessProbe"`
		Resources       struct{ Requests, Limits map[string]string }
		SecurityContext struct {
			AllowPrivilegeEscalation bool `yaml:"allowPrivilegeEscalation"`
			ReadOnlyRootFilesystem   bool `yaml:"readOnlyRootFilesystem"`
			Capabilities             struct{ Drop []string }
		} `yaml:"securityContext"`
		VolumeMounts []struct {
			Name      string
			MountPath string `yaml:"mountPath"`
			ReadOnly  bool   `yaml:"readOnly"`
		} `yaml:"volumeMounts"`
	}
	probe struct {
		Exec                struct{ Command []string }
		InitialDelaySeconds int `yaml:"initialDelaySeconds"`
		PeriodSeconds       int `yaml:"periodSeconds"`
		TimeoutSeconds      int `yaml:"timeoutSeconds"`
		FailureThreshold    int `yaml:"failureThreshold"`
	}
	service struct {
		Type                  string
		ExternalTrafficPolicy string `yaml:"externalTrafficPolicy"`
		Selector              map[string]string
		Ports                 []struct {
			Name       string
			Port       int
			TargetPort int `yaml:"targetPort"`
		}
	}
	claim struct {
		AccessModes []string `yaml:"accessModes"`
		Resources   struct{ Requests map[string]string }
	}
	kustomization struct {
		APIVersion      string `yaml:"apiVersion"`
		Kind            string
		Resources       []string
		SecretGenerator []struct {
			Name  string
			Files []string
		} `yaml:"secretGenerator"`
		Images []struct {
			Name   string
			NewTag string `yaml:"newTag"`
		}
		Patches []struct {
			Target struct{ Kind string }
			Patch  string
		}
	}
)

// decode reads one YAML document into v and wants no key that v does not know.
func decode(t *testing.T, text []byte, v any) {
	t.Helper()
	dec := yaml.NewDecoder(bytes.NewReader(text))
	dec.KnownFields(true)
	if err := dec.Decode(v); err != nil {
		t.Fatal(err)
	}
	if err := dec.Decode(new(any)); !errors.Is(err, io.EOF) {
		t.Fatalf("a second document: %v", err)
	}
}

func read(t *testing.T, path string) []byte {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// spec decodes the spec of an object, strictly.
func (o *object) spec(t *testing.T, v any) {
	t.Helper()
	text, err := yaml.Marshal(&o.Spec)
	if err != nil {
		t.Fatal(err)
	}
	decode(t, text, v)
}

func readCompose(t *testing.T) (c compose) {
	t.Helper()
	decode(t, read(t, "compose/compose.yaml"), &c)
	return c
}

// readDeployment reads the deployment of a role.
func readDeployment(t *testing.T, role string) (o object, d deployment) {
	t.Helper()
	decode(t, read(t, filepath.Join("kubernetes", role, "deployment.yaml")), &o)
	if o.APIVersion != "apps/v1" || o.Kind != "Deployment" {
		t.Errorf("%s is %s %s", role, o.APIVersion, o.Kind)
	}
	o.spec(t, &d)
	if len(d.Template.Spec.Containers) != 1 {
		t.Fatalf("%s has %d containers; want 1", role, len(d.Template.Spec.Containers))
	}
	return o, d
}

func TestCompose(t *testing.T) {
	c := readCompose(t)
	for name, s := range c.Services {
		if !s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Equal(s.SecurityOpt, []string{"no-new-privileges:true"}) {
			t.Errorf("%s may do more than it needs: %+v", name, s)
		}
		dockerfile := filepath.Join("compose", s.Build.Context, s.Build.Dockerfile)
		if s.Build.Dockerfile == "" {
			dockerfile = filepath.Join(dockerfile, "Dockerfile")
		}
		if _, err := os.Stat(dockerfile); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		for _, n := range s.Networks {
			if _, ok := c.Networks[n]; !ok {
				t.Errorf("%s is in the network %s, which there is not", name, n)
			}
		}
		for _, secret := range s.Secrets {
			if c.Secrets[secret].File == "" || !slices.Contains(s.Command, "/run/secrets/"+secret) {
				t.Errorf("%s does not use its secret %s", name, secret)
			}
		}
		for _, v := range s.Volumes {
			volume, path, _ := strings.Cut(v, ":")
			if _, ok := c.Volumes[volume]; !ok || path != stateDir(t) {
				t.Errorf("%s has the volume %s; want one at %s", name, v, stateDir(t))
			}
		}
		for _, path := range s.Tmpfs {
			if path != stateDir(t) {
				t.Errorf("%s has memory at %s; want it at %s", name, path, stateDir(t))
			}
		}
	}
	// The recogniser is behind the bridge: no port, and a network of its own that leads nowhere.
	r := c.Services["recogniser"]
	if len(r.Ports) > 0 || !slices.Equal(r.Networks, []string{"lan"}) || !c.Networks["lan"].Internal {
		t.Errorf("the recogniser can be reached from outside: %+v", r)
	}
}

func TestKubernetes(t *testing.T) {
	for _, role := range []string{"proxy", "bridge"} {
		o, d := readDeployment(t, role)
		labels := d.Template.Metadata.Labels
		for key, value := range d.Selector.MatchLabels {
			if labels[key] != value || o.Metadata.Labels[key] != value {
				t.Errorf("%s selects %s: %s, and is %v", role, key, value, labels)
			}
		}
		if d.Replicas != 1 || d.Strategy.RollingUpdate.MaxSurge != 0 || d.Strategy.RollingUpdate.MaxUnavailable != 1 {
			t.Errorf("%s may run twice: %d, %+v", role, d.Replicas, d.Strategy)
		}
		p := d.Template.Spec
		if !p.SecurityContext.RunAsNonRoot || p.SecurityContext.SeccompProfile.Type != "RuntimeDefault" || p.AutomountServiceAccountToken {
			t.Errorf("the pod of the %s may do more than it needs", role)
		}
		if p.TerminationGracePeriodSeconds <= 30 {
			t.Errorf("the %s has %d s to stop; --drain is 30 by default", role, p.TerminationGracePeriodSeconds)
		}
		c := p.Containers[0]
		if s := c.SecurityContext; s.AllowPrivilegeEscalation || !s.ReadOnlyRootFilesystem || !slices.Equal(s.Capabilities.Drop, []string{"ALL"}) {
			t.Errorf("the container of the %s may do more than it needs: %+v", role, s)
		}
		if role == "bridge" && c.LivenessProbe.Exec.Command != nil {
			t.Error("a bridge whose link is down would be restarted, and its users' connections lost")
		}
		var paths []string
		for _, m := range c.VolumeMounts {
			paths = append(paths, m.MountPath)
		}
		if !slices.Contains(paths, stateDir(t)) {
			t.Errorf("the %s has volumes at %q; want one at %s", role, paths, stateDir(t))
		}

		var k kustomization
		decode(t, read(t, filepath.Join("kubernetes", role, "kustomization.yaml")), &k)
		files := slices.Concat(k.Resources, []string{"kustomization.yaml"})
		found, err := filepath.Glob(filepath.Join("kubernetes", role, "*.yaml"))
		if err != nil || len(found) != len(files) {
			t.Errorf("%s has the files %q, and its kustomization knows %q", role, found, files)
		}
		var secrets []string
		for _, s := range k.SecretGenerator {
			secrets = append(secrets, s.Name)
		}
		var claims []string
		for _, name := range k.Resources {
			var o object
			decode(t, read(t, filepath.Join("kubernetes", role, name)), &o)
			switch o.Kind {
			case "PersistentVolumeClaim":
				var c claim
				o.spec(t, &c)
				claims = append(claims, o.Metadata.Name)
			case "Service":
				var s service
				o.spec(t, &s)
				for key, value := range s.Selector {
					if labels[key] != value {
						t.Errorf("the service selects %s: %s, and the pod is %v", key, value, labels)
					}
				}
				for i, port := range s.Ports {
					if i >= len(c.Ports) || c.Ports[i].Name != port.Name || c.Ports[i].ContainerPort != port.TargetPort {
						t.Errorf("the service has %v, and the container %v", s.Ports, c.Ports)
					}
				}
			case "Deployment":
			default:
				t.Errorf("%s: kind %q", name, o.Kind)
			}
		}
		for _, v := range p.Volumes {
			if s := v.Secret.SecretName; s != "" && !slices.Contains(secrets, s) {
				t.Errorf("nothing makes the secret %s", s)
			}
			if s := v.PersistentVolumeClaim.ClaimName; s != "" && !slices.Contains(claims, s) {
				t.Errorf("nothing claims the volume %s", s)
			}
		}
	}
	var k kustomization
	decode(t, read(t, "kubernetes/openshift/kustomization.yaml"), &k)
	if len(k.Patches) != 1 || !strings.Contains(k.Patches[0].Patch, "path: /spec/template/spec/securityContext/fsGroup") {
		t.Errorf("patches for OpenShift: %+v", k.Patches)
	}
}

// dockerfile returns the arguments of an instruction in the last stage of the image's Dockerfile, or of its first FROM.
func dockerfile(t *testing.T, instruction string) string {
	t.Helper()
	var found string
	lines := bufio.NewScanner(bytes.NewReader(read(t, "../Dockerfile")))
	for lines.Scan() {
		word, rest, _ := strings.Cut(lines.Text(), " ")
		if word == instruction && (word != "FROM" || found == "") {
			found = rest
		}
	}
	if found == "" {
		t.Fatalf("the Dockerfile has no %s", instruction)
	}
	return found
}

// stateDir is where the image keeps states.
func stateDir(t *testing.T) string {
	t.Helper()
	dir := dockerfile(t, "VOLUME")
	if env := dockerfile(t, "ENV"); env != "STATE_DIRECTORY="+dir {
		t.Errorf("the image has a volume at %s and ENV %s", dir, env)
	}
	return dir
}

// healthCheck is the command of the image's health check.
func healthCheck(t *testing.T) (command []string) {
	t.Helper()
	_, list, _ := strings.Cut(dockerfile(t, "HEALTHCHECK"), "CMD ")
	if err := json.Unmarshal([]byte(list), &command); err != nil {
		t.Fatalf("HEALTHCHECK: %v", err)
	}
	return command
}

// The images are built with the Go that the module asks for.
func TestGoOfImages(t *testing.T) {
	goVersion := regexp.MustCompile(`(?m)^go (1\.[0-9]+)`).FindSubmatch(read(t, "../go.mod"))
	for _, file := range []string{"../Dockerfile", "../examples/asr/Dockerfile"} {
		if !bytes.Contains(read(t, file), append([]byte("golang:"), append(goVersion[1], " AS build"...)...)) {
			t.Errorf("%s is not built with Go %s", file, goVersion[1])
		}
	}
}

// What the build of an image reads leaves out secrets and what changes all the time.
func TestDockerignore(t *testing.T) {
	lines := strings.Fields(regexp.MustCompile(`(?m)^#.*`).ReplaceAllString(string(read(t, "../.dockerignore")), ""))
	if len(lines) == 0 || lines[0] != "*" {
		t.Fatalf(".dockerignore begins with %q; want all to be left out that is not named", lines)
	}
	for _, line := range lines {
		name, named := strings.CutPrefix(line, "!")
		if !named || strings.Contains(name, "*") {
			continue
		}
		if _, err := os.Stat(filepath.Join("..", name)); errors.Is(err, fs.ErrNotExist) {
			t.Errorf(".dockerignore names %s, which there is not", name)
		}
	}
	for _, dir := range []string{"deploy", "docs", "e2e", "bench", "packaging"} {
		if slices.Contains(lines, "!"+dir) {
			t.Errorf("the build reads %s", dir)
		}
	}
}
