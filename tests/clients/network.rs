//! Packages on the far side of TLS and of proxies: nginx with a certificate of an authority of ours, and tinyproxy.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::certificates::Authority;
use crate::publishing::{KEYS, push, serve_s3};
use crate::support::{Ended, Served, Site, disk, free_port, said, talk, tool, vmnetx, wait_until};

/// 4 MiB and a bit.
const BLOCKS: usize = 1024;

/// The variables by which an environment names proxies.
const PROXY_VARIABLES: [&str; 7] =
    ["http_proxy", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY", "no_proxy", "NO_PROXY"];

/// A site that is served over https too, and at an address that is this host's but does not look so: a proxy is asked for it.
struct TlsSite {
    site: Site,
    ca_file: String,
    open_port: u16,
    tls_port: u16,
}

impl TlsSite {
    fn publish(disk: &[u8], names: &[&str]) -> Self {
        let mut site = Site::empty();
        fs::write(site.disk(), disk).unwrap();
        site.build();
        let (authority, open_port, tls_port) = (Authority::new("an authority"), free_port(), free_port());
        let signed = authority.sign(names);
        let dir = site.dir.path().display();
        for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", signed.certificate), ("key.pem", signed.key)] {
            fs::write(site.path(name), text).unwrap();
        }
        site.directives = format!(
            "listen 0.0.0.0:{open_port}; listen 0.0.0.0:{tls_port} ssl; \
             ssl_certificate {dir}/cert.pem; ssl_certificate_key {dir}/key.pem;"
        );
        let ca_file = site.path("ca.pem").to_str().unwrap().to_owned();
        site.start_nginx();
        Self { site, ca_file, open_port, tls_port }
    }

    fn https_link(&self, host: &str) -> String {
        format!("https://{host}:{}/vm.vmnetx", self.tls_port)
    }

    fn http_link(&self, host: &str) -> String {
        format!("http://{host}:{}/vm.vmnetx", self.open_port)
    }

    /// Copies the repository behind a link into a new folder, in an environment that names these proxies alone.
    fn pull(&self, link: &str, words: &[&str], environment: &[(&str, &str)]) -> Output {
        let copy = self.site.path("copy");
        let _ = fs::remove_dir_all(&copy);
        let mut command = vmnetx(&["nbd", "pull", link, "--retry-for", "5", "--to"]);
        command.arg(copy).args(words);
        for variable in PROXY_VARIABLES {
            command.env_remove(variable);
        }
        command.envs(environment.iter().copied()).output().unwrap()
    }
}

fn expect_success(output: &Output) {
    assert!(output.status.success(), "{}: {}", output.status, talk(output));
}

/// What it says of a failure of the network.
fn expect_network_failure(output: &Output) -> String {
    let told = talk(output);
    assert_eq!(output.status.code(), Some(5), "{told}");
    told
}

#[test]
fn nginx_with_an_authority_of_ones_own_is_read_over_https() {
    let published = disk(BLOCKS);
    let there = TlsSite::publish(&published, &["localhost"]);
    let (site, link) = (&there.site, there.https_link("localhost"));
    let (socket, copy) = (site.path("nbd"), site.path("disk.copy"));
    let served = Served::start(&link, &["--ca-file", &there.ca_file, "--socket", socket.to_str().unwrap()]);
    said(tool("nbdcopy", &[&served.uri]).arg(&copy));
    assert!(fs::read(&copy).unwrap() == published);
    served.stop();

    expect_success(&there.pull(&link, &["--ca-file", &there.ca_file], &[]));
    said(vmnetx(&["pack", "verify"]).arg(site.path("copy")));
    // As one of the system's own.
    expect_success(&there.pull(&link, &[], &[("SSL_CERT_FILE", &there.ca_file)]));

    let told = expect_network_failure(&there.pull(&link, &[], &[]));
    assert!(told.contains("certificate is not believed") && told.contains("--ca-file"), "{told}");
    let told = expect_network_failure(&there.pull(&there.https_link("127.0.0.1"), &["--ca-file", &there.ca_file], &[]));
    assert!(told.contains("not for this host's name"), "{told}");
    let output = there.pull(&link, &["--ca-file", site.disk().to_str().unwrap()], &[]);
    assert_eq!(output.status.code(), Some(6), "{}", talk(&output));
}

/// A server that runs already is told the file by whoever attaches; others who attach do not believe that host for it.
#[test]
fn an_authority_is_believed_for_the_attachment_that_names_it() {
    let published = disk(BLOCKS);
    let there = TlsSite::publish(&published, &["localhost"]);
    let (site, link) = (&there.site, there.https_link("localhost"));
    let cache = site.path("cache");
    let server = vmnetx(&["nbd", "serve", "--idle", "60", "--cache-dir"]).arg(&cache).spawn().unwrap();
    let _server = Ended(server);
    wait_until("the server answers", || cache.join("control.sock").exists());
    let attach = |words: &[&str]| {
        let mut command = vmnetx(&["nbd", "attach", &link, "--cache-dir"]);
        command.arg(&cache).args(words);
        command
    };
    let _trusting = Ended(attach(&["--id", "one", "--ca-file", &there.ca_file]).spawn().unwrap());
    let socket = cache.join("control.d/one");
    wait_until("the package is attached", || socket.exists());
    let uri = format!("nbd+unix:///disk0?socket={}", socket.display());
    let copy = site.path("disk.copy");
    said(tool("nbdcopy", &[&uri]).arg(&copy));
    assert!(fs::read(&copy).unwrap() == published);
    let told = expect_network_failure(&attach(&["--id", "two"]).output().unwrap());
    assert!(told.contains("--ca-file"), "{told}");
}

/// A tinyproxy that asks for a login.
struct Proxy {
    _child: Ended,
    url: String,
    log: std::path::PathBuf,
}

impl Proxy {
    fn start(dir: &Path) -> Self {
        let (port, log) = (free_port(), dir.join("tinyproxy.log"));
        let config = format!(
            "Port {port}\nListen 127.0.0.1\nTimeout 60\nMaxClients 40\nLogLevel Connect\nLogFile \"{}\"\n\
             BasicAuth ann secret\n",
            log.display()
        );
        fs::write(dir.join("tinyproxy.conf"), config).unwrap();
        let mut command = Command::new("tinyproxy");
        command.arg("-d").arg("-c").arg(dir.join("tinyproxy.conf")).stdin(Stdio::null()).stdout(Stdio::null());
        let child = Ended(command.spawn().expect("tinyproxy"));
        wait_until("tinyproxy listens", || TcpStream::connect(("127.0.0.1", port)).is_ok());
        Self { _child: child, url: format!("http://ann:secret@127.0.0.1:{port}"), log }
    }

    /// Requests for this method and target that it took.
    fn requests(&self, request: &str) -> usize {
        let log = fs::read(&self.log).unwrap();
        String::from_utf8_lossy(&log).lines().filter(|line| line.contains(request)).count()
    }
}

#[test]
fn proxies_of_the_environment_are_passed() {
    let there = TlsSite::publish(&disk(BLOCKS), &["0.0.0.0"]);
    let (http, https) = (there.http_link("0.0.0.0"), there.https_link("0.0.0.0"));
    let (trusting, copy) = (["--ca-file", there.ca_file.as_str()], there.site.path("copy"));
    let proxy = Proxy::start(there.site.dir.path());
    let plain = format!(": GET {} ", http.trim_end_matches("vm.vmnetx"));
    let plain = plain.trim_end();
    let tunnel = format!(": CONNECT 0.0.0.0:{} ", there.tls_port);

    expect_success(&there.pull(&http, &[], &[("http_proxy", &proxy.url)]));
    said(vmnetx(&["pack", "verify"]).arg(&copy));
    let taken = proxy.requests(plain);
    assert!(taken >= 4, "link, manifest, layout and a pack, but there were {taken} requests");
    expect_success(&there.pull(&https, &trusting, &[("all_proxy", &proxy.url)]));
    said(vmnetx(&["pack", "verify"]).arg(&copy));
    let tunnels = proxy.requests(&tunnel);
    assert!(tunnels > 0);

    // Without it where it is not to be asked: by name, for this host itself, and for the other scheme.
    let direct: [(&str, &[(&str, &str)]); 4] = [
        (&https, &[("https_proxy", &proxy.url), ("no_proxy", "0.0.0.0")]),
        (&http, &[("all_proxy", &proxy.url), ("NO_PROXY", "*")]),
        (&there.http_link("127.0.0.1"), &[("all_proxy", &proxy.url)]),
        (&http, &[("https_proxy", &proxy.url)]),
    ];
    for (link, environment) in direct {
        expect_success(&there.pull(link, &trusting, environment));
    }
    assert_eq!((proxy.requests(plain), proxy.requests(&tunnel)), (taken, tunnels));

    // It wants a login, and the right one.
    let (none, wrong) = (proxy.url.replace("ann:secret@", ""), proxy.url.replace("secret", "wrong"));
    for (link, variable) in [(&http, "http_proxy"), (&https, "HTTPS_PROXY")] {
        let told = expect_network_failure(&there.pull(link, &trusting, &[(variable, &none)]));
        assert!(told.contains("407") && told.contains("USER:PASSWORD") && told.contains(&none), "{told}");
        let told = expect_network_failure(&there.pull(link, &trusting, &[(variable, &wrong)]));
        assert!(told.contains("401") && told.contains(&none) && !told.contains("wrong"), "{told}");
    }
    // A proxy that is not there, and one of a kind that is not spoken to.
    let told = expect_network_failure(&there.pull(&https, &trusting, &[("https_proxy", "http://127.0.0.1:9")]));
    assert!(told.contains("the proxy http://127.0.0.1:9 cannot be reached"), "{told}");
    let output = there.pull(&https, &trusting, &[("https_proxy", "socks5://127.0.0.1:9")]);
    assert_eq!(output.status.code(), Some(2), "{}", talk(&output));
    assert!(talk(&output).contains("https_proxy"), "{}", talk(&output));
}

/// Publishing into a bucket goes the same way.
#[test]
fn a_push_passes_the_proxy_too() {
    let site = Site::empty();
    fs::write(site.disk(), disk(BLOCKS)).unwrap();
    site.build();
    fs::create_dir_all(site.path("s3/vms")).unwrap();
    let (_server, endpoint) = serve_s3("0.0.0.0", &site.path("s3"), &KEYS);
    let proxy = Proxy::start(site.dir.path());
    let mut push = push(&site.path("repository"), &endpoint);
    let told =
        said(push.arg("--allow-http").env("http_proxy", &proxy.url).env_remove("no_proxy").env_remove("NO_PROXY"));
    assert!(told.contains("pushed    s3://vms/lab/vm.vmnetx, serial 1"), "{told}");
    assert!(proxy.requests(&format!(": PUT {endpoint}/vms/lab/")) >= 4, "link, manifest, layout and a pack");
    let told = talk(&push.env("http_proxy", proxy.url.replace("ann:secret@", "")).output().unwrap());
    assert!(told.contains("407"), "{told}");
}
