package main

import (
	"encoding/json"
	"fmt"
	"net/url"
	"strings"
)

// summaryChinese is the summary in Chinese, for systems that speak it.
const summaryChinese = "让内网里的服务拥有一个公网地址"

// managers are the files that tell the package managers of Windows, Scoop and winget, where the zips are, and their checksums.
func (r *release) managers(files []file) (made []file, err error) {
	type scoopZip struct {
		URL  string `json:"url"`
		Hash string `json:"hash"`
	}
	scoop := struct {
		Version      string              `json:"version"`
		Description  string              `json:"description"`
		Homepage     string              `json:"homepage"`
		License      string              `json:"license"`
		Architecture map[string]scoopZip `json:"architecture"`
		Bin          string              `json:"bin"`
		Shortcuts    [][]string          `json:"shortcuts"`
	}{r.plainVersion(), summary, r.download, license, map[string]scoopZip{}, program + ".exe", [][]string{{program + ".exe", program}}}
	var installers strings.Builder
	for _, arch := range []struct{ goArch, scoop, winget string }{{"amd64", "64bit", "x64"}, {"arm64", "arm64", "arm64"}} {
		for _, f := range files {
			if !strings.HasSuffix(f.name, "_windows_"+arch.goArch+".zip") {
				continue
			}
			address := r.download + "/" + url.PathEscape(f.name)
			scoop.Architecture[arch.scoop] = scoopZip{address, sum(f.data)}
			fmt.Fprintf(&installers, "- Architecture: %s\n  InstallerUrl: %s\n  InstallerSha256: %s\n", arch.winget, address, strings.ToUpper(sum(f.data)))
		}
	}
	if installers.Len() == 0 {
		return nil, nil // nothing for Windows was built
	}
	text, err := json.MarshalIndent(scoop, "", "    ")
	if err != nil {
		return nil, err
	}
	made = append(made, file{name: program + ".json", data: append(text, '\n')})

	winget := func(kind, name, body string) {
		text := fmt.Sprintf("PackageIdentifier: %s\nPackageVersion: %s\n%sManifestType: %s\nManifestVersion: 1.6.0\n", wingetName, r.plainVersion(), body, kind)
		made = append(made, file{name: wingetName + name + ".yaml", data: []byte(text)})
	}
	locale := func(lang, text, more string) string {
		return fmt.Sprintf("PackageLocale: %s\nPublisher: %s\nPackageName: %s\nLicense: %s\nShortDescription: %s\n%s", lang, publisher, program, license, text, more)
	}
	winget("version", "", "DefaultLocale: en-US\n")
	winget("defaultLocale", ".locale.en-US", locale("en-US", summary, "Moniker: "+program+"\n"))
	winget("locale", ".locale.zh-CN", locale("zh-CN", summaryChinese, ""))
	winget("installer", ".installer", "InstallerType: zip\nNestedInstallerType: portable\nNestedInstallerFiles:\n- RelativeFilePath: "+program+".exe\n  PortableCommandAlias: "+program+
		"\nReleaseDate: "+r.date.Format("2006-01-02")+"\nInstallers:\n"+installers.String())
	return made, nil
}

// wingetName is publisher and program, as winget names packages.
const wingetName = program + "." + program

// checkDownload returns the address below which the files of a release will be found. Without one, it is a placeholder.
func checkDownload(s, version string) (string, error) {
	if s == "" {
		return "https://YOUR.SERVER/" + program + "/" + version, nil
	}
	u, err := url.Parse(s)
	if err != nil || u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
		return "", fmt.Errorf("download address %q: it looks like https://example.com/reverser/%s", s, version)
	}
	return strings.TrimSuffix(u.String(), "/"), nil
}
