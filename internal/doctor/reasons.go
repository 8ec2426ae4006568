package doctor

import "strings"

// reason is what the proxy says of a service that is not up, and what to do about it. The words come from another process, maybe of another
// version, so they are known by what they contain. The registry of the proxy writes most of them.
type reason struct {
	words     string
	at, there string // what to do, for who asks at the bridge and at the proxy; there "": the same
	own       string // where the reason itself may end with what to do at the proxy, how that begins
	socket    bool   // the system would not open the port
	port      bool   // somebody else may have it
}

const takenHint = "stop who has the port, or have the bridge ask for another one"

// reasons are tried from the first on. Those that are whole sentences come before the errors of a system.
var reasons = []reason{
	// A key may not have it, or the proxy does not have what it needs.
	{words: "the policy of key", at: allowHint},
	{words: "the proxy offers no public port", at: "name a public port in the bridge's settings, or give the proxy's file a WorkPort"},
	{words: "that this proxy does not know", at: "update the proxy"},
	{words: "the proxy has no port for", at: "at the proxy, give it that port, or ask for another name", own: "start it with"},
	{words: "this proxy serves", at: "ask for a name of a kind that it serves, or update the proxy"},
	{words: "no certificate for a wildcard", at: "give the proxy a certificate ([[certificate]] in its file), or claim each host", own: "give the proxy one"},
	{words: "the link itself uses this port", at: "ask for another port, or give the proxy another one for its bridges (--listen)"},
	{words: "is not in group", at: "at the proxy, put the key into the group, or leave the group out of the bridge's settings"},

	// It may have it, and something is in the way at present.
	{words: "the proxy is stopping", at: "it comes back when the proxy has started again, or with the process that has taken its place"},
	{words: "another service of the same bridge", at: "take one of the two out of the bridge's settings"},
	{words: "another service of this key", at: "take one of the two out of the bridge's settings, or give them addresses that do not cover each other"},
	{words: "held by", at: "ask for another name, or have the other bridge give it up: `reverser status` at the proxy says which key has it",
		there: "take it out of the settings of the bridge that has it, or have this one ask for another name"},
	{words: "more than the limit max-services", at: "at the proxy, `reverser key edit NAME --max-services N` allows the key more (max_services, where it stands in a file); or ask for fewer services",
		there: "`reverser key edit NAME --max-services N` allows the key more (max_services, where it stands in a file), or have its bridge ask for fewer services"},
	{words: "no descriptor of the proxy's is left", at: "raise the limit at the proxy (ulimit -n, LimitNOFILE=), or ask for fewer ports", own: "raise the limit"},
	{words: "has its share", at: "at the proxy, `reverser key edit NAME --max-services N` gives the key a number of its own; or ask for fewer names"},
	{words: "may have half of what others leave", at: "at the proxy, `reverser key edit NAME --max-services N` gives the key a number of its own; or ask for fewer names", own: "`reverser key edit"},
	{words: "has no place", at: "give the proxy more memory (MemoryMax=), or ask for fewer names", own: "give it more"},
	{words: "a newer session of the same key took over", at: "add it to the settings of the bridge that has taken over, if it is still wanted"},

	// The system of the proxy's machine would not open the port.
	{words: "permission denied", socket: true, at: "ask for a port from 1024 on, or let the proxy open lower ones: `reverser service install` does"},
	{words: "cannot assign requested address", socket: true, at: "ask for an address of the proxy's machine, or for none", there: "have the bridge ask for an address of this machine, or for none; " + BindHint},
	{words: "not valid in its context", socket: true, at: "ask for an address of the proxy's machine, or for none", there: "have the bridge ask for an address of this machine, or for none; " + BindHint},
	{words: "too many open files", socket: true, at: "raise the limit at the proxy (ulimit -n, LimitNOFILE=)"},
	{words: "in use", socket: true, port: true, at: "the proxy goes on trying; `reverser doctor` there says who has the port", there: takenHint},
}

// What is said of a reason that is not known.
var (
	unknownDenial = reason{at: "change at the proxy what stands in the way, or ask for another name"}
	unknownDelay  = reason{at: "the proxy goes on trying, and `reverser doctor` there may say more", there: "the proxy goes on trying; `reverser events` may say more", socket: true, port: true}
)

// reasonOf returns what is known about why a service is not up, or else what is said of one that is not known.
func reasonOf(why string, unknown reason) reason {
	for _, r := range reasons {
		if strings.Contains(why, r.words) {
			return r
		}
	}
	return unknown
}

// hint is what to do, where the asker is at the proxy or not. what is the reason without the part of it that says so.
func (r reason) hint(why string, atProxy bool) (what, hint string) {
	if r.own != "" {
		if before, after, found := strings.Cut(why, ": "+r.own); found && !strings.HasSuffix(after, "…") { // else it was cut on its way here
			if hint = r.own + after; !atProxy {
				hint = "at the proxy, " + hint
			}
			return before, hint
		}
	}
	if atProxy && r.there != "" {
		return why, r.there
	}
	return why, r.at
}
