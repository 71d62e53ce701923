//! Which proxy is taken, and what comes of proxies that refuse.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use super::*;
use crate::Error;
use crate::failure::{Class, Told, tell};
use crate::origin::{Access, HttpClient};

fn proxies(environment: &[(&str, &str)]) -> Proxies {
    Proxies::of(|wanted| {
        environment.iter().find(|(variable, _)| *variable == wanted).map(|(_, text)| (*text).to_owned())
    })
}

/// The proxy for a URL: its URL, or the variable that names none.
fn toward(environment: &[(&str, &str)], url: &str) -> String {
    match proxies(environment).toward(&url.parse().unwrap()) {
        Ok(proxy) => proxy.map(shown).unwrap_or_default(),
        Err(ProxyError::Variable { variable }) => variable.to_owned(),
        Err(other) => panic!("{other}"),
    }
}

#[test]
fn variables_are_read_as_curl_reads_them() {
    let all = [
        ("http_proxy", "http://a:1"),
        ("HTTP_PROXY", "http://b:2"),
        ("HTTPS_PROXY", "c:3"),
        ("ALL_PROXY", "http://d:4/"),
    ];
    let (http, https) = ("http://example.org/x", "https://example.org/x");
    assert_eq!((toward(&all, http), toward(&all, https)), ("http://a:1".into(), "http://c:3".into()));
    assert_eq!(toward(&all[1..], http), "http://d:4");
    // What a client of a CGI program may choose is not taken.
    assert_eq!(toward(&all[1..2], http), "");
    assert_eq!(toward(&[("https_proxy", ""), ("all_proxy", "http://e:5")], https), "http://e:5");
    assert_eq!(toward(&[("https_proxy", "http://s:6"), ("HTTPS_PROXY", "http://t:7")], https), "http://s:6");
    assert_eq!(toward(&[], https), "");
}

#[test]
fn some_hosts_need_no_proxy() {
    let environment = [("all_proxy", "http://a:1"), ("no_proxy", "example.org, 10.0.0.0/8")];
    for direct in [
        "https://example.org/",
        "https://vms.example.org:8443/",
        "http://10.1.2.3/",
        // This host, whatever the environment says.
        "http://127.0.0.1:8080/",
        "https://localhost/",
        "http://[::1]:80/",
    ] {
        assert_eq!(toward(&environment, direct), "", "{direct}");
    }
    for through in ["https://notexample.org/", "http://11.1.2.3/", "http://localhost.example.com/"] {
        assert_eq!(toward(&environment, through), "http://a:1", "{through}");
    }
    for direct in ["http://example.org/", "http://10.1.2.3/", "https://[2001:db8::1]/"] {
        assert_eq!(toward(&[("all_proxy", "http://a:1"), ("NO_PROXY", "example.com,*")], direct), "", "{direct}");
    }
}

#[test]
fn what_is_no_proxy_is_told_by_its_variable() {
    for wrong in ["socks5h://a:1080", "https://a:443", "ftp://a", "http://", "not a proxy"] {
        assert_eq!(toward(&[("all_proxy", wrong)], "http://example.org/"), "all_proxy", "{wrong}");
        // Whoever needs no proxy does not care.
        assert_eq!(toward(&[("all_proxy", wrong)], "http://localhost/"), "", "{wrong}");
    }
}

#[test]
fn logins_are_for_the_proxy_and_not_shown() {
    let proxies = proxies(&[("all_proxy", "http://ann:pa%3Ass@a:1")]);
    let login = |url: &'static str| proxies.authorization(&Uri::from_static(url));
    // base64 of `ann:pa:ss`.
    let header = login("http://example.org/").unwrap();
    assert!(header == "Basic YW5uOnBhOnNz" && header.is_sensitive());
    assert_eq!((login("https://example.org/"), login("http://localhost/")), (None, None));
    assert!(!format!("{proxies:?}").contains("pa"), "{proxies:?}");
}

/// A proxy that answers every request with these bytes and then closes; it ends with the runtime. Gives its requests, too.
async fn answering(answer: &'static str) -> (Proxies, mpsc::UnboundedReceiver<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://ann:secret@{}", listener.local_addr().unwrap());
    let (asked, requests) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                head.push(stream.read_u8().await.unwrap());
            }
            let _ = asked.send(String::from_utf8(head).unwrap());
            let _ = stream.write_all(answer.as_bytes()).await;
        }
    });
    (proxies(&[("all_proxy", &url)]), requests)
}

async fn get(proxies: &Proxies, url: &str) -> Result<Bytes, Error> {
    let client = HttpClient::through(Access::default(), proxies.clone());
    let url = url.parse().unwrap();
    timeout(Duration::from_secs(60), client.whole(&url, 100)).await.expect("the test hangs")
}

const HTTP: &str = "http://vms.example.org:8080/a?b";
const HTTPS: &str = "https://vms.example.org/a";

#[tokio::test]
async fn requests_to_a_proxy_have_the_whole_url_and_its_login() {
    let (proxies, mut requests) = answering("HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await;
    assert_eq!(get(&proxies, HTTP).await.unwrap(), "good");
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("get http://vms.example.org:8080/a?b http/1.1\r\n"), "{request}");
    // base64 of `ann:secret`.
    assert!(request.contains("proxy-authorization: basic yw5uonnly3jlda==\r\n"), "{request}");
    assert!(request.contains("\r\nhost: vms.example.org:8080\r\n"), "{request}");
    // The tunnel is refused by a proxy that talks on; what it was asked for counts here.
    assert!(get(&proxies, HTTPS).await.is_err());
    let request = requests.recv().await.unwrap().to_ascii_lowercase();
    assert!(request.starts_with("connect vms.example.org:443 http/1.1\r\n"), "{request}");
    assert!(request.contains("proxy-authorization: basic yw5uonnly3jlda==\r\n"), "{request}");
}

#[tokio::test]
async fn a_refusal_is_told_as_the_proxys_and_not_repeated() {
    let (proxies, _requests) = answering("HTTP/1.1 407 No\r\nContent-Length: 0\r\n\r\n").await;
    for url in [HTTP, HTTPS] {
        let error = get(&proxies, url).await.unwrap_err();
        assert!(matches!(error, Error::Proxy { .. }) && error.class() == Class::Network, "{url}: {error}");
        let told = tell(&error);
        assert!(told.contains("127.0.0.1") && told.contains("407") && told.contains("USER:PASSWORD"), "{told}");
        assert!(!told.contains("secret") && !error.is_transient(), "{told}");
    }
    let (proxies, _requests) = answering("HTTP/1.1 403 No\r\nContent-Length: 0\r\n\r\n").await;
    let error = get(&proxies, HTTPS).await.unwrap_err();
    assert!(matches!(error, Error::Proxy { .. }) && tell(&error).contains("no_proxy"), "{error}");
    // Here it may be the origin's word.
    let error = get(&proxies, HTTP).await.unwrap_err();
    assert!(matches!(error, Error::Refused { .. }) && error.to_string().contains("through the proxy"), "{error}");
}

#[tokio::test]
async fn what_may_pass_is_an_outage() {
    for answer in [
        "HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n",
        "HTTP/1.0 500 Unable\r\n\r\n",
        "",
        "SSH-2.0-OpenSSH_9.2\r\n\r\n",
    ] {
        let (proxies, _requests) = answering(answer).await;
        for url in [HTTP, HTTPS] {
            let error = get(&proxies, url).await.unwrap_err();
            assert!(error.is_transient() && error.class() == Class::Network, "{answer:?} {url}: {error}");
        }
    }
    // Nobody is there. (The port was free a moment ago.)
    let address = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let error = get(&proxies(&[("all_proxy", &address.to_string())]), HTTPS).await.unwrap_err();
    let told = error.to_string();
    assert!(error.is_transient() && told.contains(&format!("the proxy http://{address} cannot be reached")), "{told}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_says_nothing_is_not_waited_for_for_ever() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = proxies(&[("all_proxy", &listener.local_addr().unwrap().to_string())]);
    for url in [HTTP, HTTPS] {
        let error = get(&silent, url).await.unwrap_err();
        assert!(error.is_transient(), "{error}");
    }
}

#[tokio::test]
async fn a_variable_that_names_no_proxy_is_a_wrong_setting() {
    let error = get(&proxies(&[("https_proxy", "socks5://a:1080")]), HTTPS).await.unwrap_err();
    assert!(error.class() == Class::Usage && error.to_string().contains("https_proxy"), "{error}");
}
