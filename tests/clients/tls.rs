//! NBD over TLS, as other people's clients speak it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use crate::certificates::Authority;
use crate::support::{Served, Site, disk, said, talk, tool, vmnetx};

/// 4 MiB and a bit.
const BLOCKS: usize = 1024;

/// Writes what a server needs into the site's folder, and gives what it is started with.
fn certificates(site: &Site, authority: &Authority) -> Vec<String> {
    let signed = authority.sign(&["localhost"]);
    for (name, text) in [("ca.pem", authority.pem()), ("cert.pem", signed.certificate), ("key.pem", signed.key)] {
        fs::write(site.path(name), text).unwrap();
        fs::set_permissions(site.path(name), fs::Permissions::from_mode(0o600)).unwrap();
    }
    let option = |option: &str, file| [option.to_owned(), site.path(file).to_str().unwrap().to_owned()];
    let listen = ["--listen", "127.0.0.1:0"].map(str::to_owned);
    [listen, option("--tls-cert", "cert.pem"), option("--tls-key", "key.pem")].concat()
}

/// A folder as clients of GnuTLS want it: whom to believe, and what to show.
fn wallet(site: &Site, name: &str, believed: &Authority, signer: Option<&Authority>) -> String {
    let dir = site.path(name);
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("ca-cert.pem"), believed.pem()).unwrap();
    if let Some(signed) = signer.map(|authority| authority.sign(&["a client"])) {
        fs::write(dir.join("client-cert.pem"), signed.certificate).unwrap();
        fs::write(dir.join("client-key.pem"), signed.key).unwrap();
    }
    dir.to_str().unwrap().to_owned()
}

/// The port of a server's URI.
fn port(served: &Served) -> &str {
    served.uri.strip_prefix("nbds://127.0.0.1:").and_then(|rest| rest.strip_suffix("/disk0")).unwrap()
}

fn uri(served: &Served, wallet: &str) -> String {
    format!("nbds://localhost:{}/disk0?tls-certificates={wallet}", port(served))
}

fn words(arguments: &[String]) -> Vec<&str> {
    arguments.iter().map(String::as_str).collect()
}

/// Copies with nbdcopy and qemu-img, and compares.
fn expect_copies(served: &Served, wallet: &str, site: &Site, published: &[u8]) {
    let copy = site.path("copy");
    said(tool("nbdcopy", &["--connections=4", "--requests=32", &uri(served, wallet)]).arg(&copy));
    assert!(fs::read(&copy).unwrap() == published, "nbdcopy");
    let credentials = format!("tls-creds-x509,id=tls0,endpoint=client,dir={wallet}");
    let image = format!("driver=nbd,host=localhost,port={},export=disk0,tls-creds=tls0", port(served));
    let how = ["convert", "--object", &credentials, "--image-opts", "-W", "-m", "16", "-O", "raw", &image];
    said(tool("qemu-img", &how).arg(&copy));
    assert!(fs::read(&copy).unwrap() == published, "qemu-img");
    let how = ["-r", "--object", &credentials, "--image-opts", "-c", "read 3 100k", "-c", "read 1M 1M", &image];
    said(&mut tool("qemu-io", &how));
    let _ = fs::remove_file(&copy);
}

#[test]
fn libnbd_and_qemu_read_over_tls_and_not_without() {
    let published = disk(BLOCKS);
    let (site, authority) = (Site::publish(&published), Authority::new("an authority"));
    let served = Served::start(&site.link(), &words(&certificates(&site, &authority)));
    let wallet = wallet(&site, "wallet", &authority, None);
    let told = said(&mut tool("nbdinfo", &["--json", &uri(&served, &wallet)]));
    let told: serde_json::Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["TLS"], &told["structured"]), (&true.into(), &true.into()), "{told}");
    assert_eq!(told["exports"][0]["export-size"], published.len(), "{told}");
    expect_copies(&served, &wallet, &site, &published);

    let plain = served.uri.replace("nbds:", "nbd:");
    for client in [tool("nbdinfo", &[&plain]), tool("qemu-img", &["info", &plain])] {
        let mut client = client;
        let output = client.output().unwrap();
        assert!(!output.status.success(), "{client:?} reads in the open");
    }
    // A client that believes another authority does not believe the server.
    let doubting = self::wallet(&site, "doubting", &Authority::new("another"), None);
    let output = tool("nbdinfo", &[&uri(&served, &doubting)]).output().unwrap();
    assert!(!output.status.success() && talk(&output).contains("certificate"), "{}", talk(&output));
    served.stop();
}

#[test]
fn clients_without_a_certificate_stay_out_where_one_is_demanded() {
    let published = disk(BLOCKS);
    let (site, authority) = (Site::publish(&published), Authority::new("an authority"));
    let ca = site.path("ca.pem").to_str().unwrap().to_owned();
    let arguments = [certificates(&site, &authority), vec!["--tls-ca".to_owned(), ca]].concat();
    let served = Served::start(&site.link(), &words(&arguments));
    let other = Authority::new("another");
    let welcome = wallet(&site, "welcome", &authority, Some(&authority));
    expect_copies(&served, &welcome, &site, &published);
    for (name, signer) in [("bare", None), ("foreign", Some(&other))] {
        let wallet = wallet(&site, name, &authority, signer);
        let output = tool("nbdinfo", &["--size", &uri(&served, &wallet)]).output().unwrap();
        assert!(!output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stdout));
    }
    // It serves on.
    expect_copies(&served, &welcome, &site, &published);
    served.stop();
}

#[test]
fn options_of_tls_belong_together() {
    let (site, authority) = (Site::empty(), Authority::new("an authority"));
    let all = certificates(&site, &authority);
    let serve =
        |words: &[&str]| vmnetx(&["nbd", "serve", "http://127.0.0.1:9/vm.vmnetx"]).args(words).output().unwrap();
    let (socket, words) = (site.path("nbd"), words(&all));
    for wrong in [&words[..4], &[&words[..2], &words[4..]].concat()[..], &words[2..], &["--tls-ca", "x"]] {
        assert_eq!(serve(wrong).status.code(), Some(2), "{wrong:?}");
    }
    let on_unix = [&["--socket", socket.to_str().unwrap()], &words[2..]].concat();
    assert_eq!(serve(&on_unix).status.code(), Some(2));
    fs::set_permissions(Path::new(words[5]), fs::Permissions::from_mode(0o644)).unwrap();
    let output = serve(&words);
    assert!(output.status.code() == Some(6) && talk(&output).contains("chmod"), "{}", talk(&output));
}
