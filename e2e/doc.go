// Package e2e runs the built reverser against programs that nobody here wrote:
// nginx, curl, redis, OpenSSH, databases, file and mail servers, HAProxy, nmap and a
// speech recogniser, all on loopback or in network namespaces.
//
// The tests know the program only from outside: its command line, its log, its
// status and its ports. They start every process themselves, on ports that were free
// and in temporary directories, wait for conditions instead of sleeping, and end the
// processes by their own id. Where Debian packages are missing a test names them and
// skips; with CI=true in the environment that is a failure.
package e2e
