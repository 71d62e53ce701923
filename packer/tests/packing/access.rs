//! Repositories on a web server that asks who is there: every command that reads a URL shows itself in the same ways.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use assert_cmd::Command;
use axum::Router;
use axum::extract::Request;
use axum::http::StatusCode;
use axum::http::header::AUTHORIZATION;
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use tower_http::services::ServeDir;

use crate::support::{Scene, noise};

/// `ann:secret`, and a token.
const LETS_IN: [&str; 2] = ["Basic YW5uOnNlY3JldA==", "Bearer token"];

/// A web server on a repository that lets in who is known.
struct Guarded {
    address: String,
    _runtime: tokio::runtime::Runtime,
}

impl Guarded {
    fn start(repository: &Path) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let guarded = Router::new().fallback_service(ServeDir::new(repository)).layer(middleware::from_fn(guard));
        runtime.spawn(async move { axum::serve(listener, guarded).await });
        Self { address, _runtime: runtime }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}/{path}", self.address)
    }
}

async fn guard(request: Request, next: Next) -> Response {
    let shown = request.headers().get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    if shown.is_some_and(|shown| LETS_IN.contains(&shown)) {
        next.run(request).await
    } else {
        StatusCode::UNAUTHORIZED.into_response()
    }
}

/// A file that nobody else may read.
fn secret(scene: &Scene, name: &str, text: &str) -> PathBuf {
    let path = scene.path(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, PermissionsExt::from_mode(0o600)).unwrap();
    path
}

/// Damages the copy `to` of a scene's repository, so that there is something to be repaired.
fn damaged_copy(scene: &Scene, to: &str) -> PathBuf {
    let to = scene.path(to);
    for file in scene.files() {
        let copy = to.join(file.strip_prefix(scene.repo()).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        let is_pack = copy.starts_with(to.join("packs"));
        let bytes = if is_pack { b"damaged".to_vec() } else { fs::read(&file).unwrap() };
        fs::write(copy, bytes).unwrap();
    }
    to
}

#[test]
fn every_command_that_reads_a_url_takes_tokens_and_netrc() {
    let scene = Scene::new();
    scene.build("vm", &scene.image("disk", &noise(1, 50_000)));
    let server = Guarded::start(&scene.repo());
    let token = format!("127.0.0.1={}", secret(&scene, "token", "token\n").display());
    let netrc = secret(&scene, "netrc", "machine 127.0.0.1 login ann password secret\n");
    let nobody = secret(&scene, "nobody", "machine elsewhere.example login ann password secret\n");
    let link = server.url("vm.vmnetx");
    let commands = [
        vec!["info", &link],
        vec!["log", &link],
        vec!["verify", &link],
        vec!["export", &link, "disk0", "-", "--quiet"],
    ];
    let command = |words: &[&str], netrc: &Path| -> Command {
        let mut command = scene.program();
        command.args(words).env("NETRC", netrc);
        command
    };
    for words in &commands {
        let refused = command(words, &nobody).assert().code(5);
        let told = String::from_utf8_lossy(&refused.get_output().stderr).into_owned();
        assert!(told.contains("401"), "{words:?}: {told}");
        command(words, &netrc).assert().success();
        command(words, &nobody).args(["--token-file", &token]).assert().success();
        command(words, &nobody).args(["--token-file", "no host and file"]).assert().code(2);
    }
    for (name, netrc, more) in [("by-netrc", &netrc, vec![]), ("by-token", &nobody, vec!["--token-file", &token])] {
        let copy = damaged_copy(&scene, name);
        let root = server.url("");
        let repair = ["repair", copy.to_str().unwrap(), "--from", &root];
        command(&repair, &nobody).assert().failure();
        command(&repair, netrc).args(&more).assert().success();
        scene.program().args(["verify", copy.to_str().unwrap()]).assert().success();
    }
    // What is on this host needs no login, so one that cannot be used is no matter.
    fs::set_permissions(&netrc, PermissionsExt::from_mode(0o644)).unwrap();
    command(&["info", &link], &netrc).assert().failure();
    command(&["info", scene.link("vm").to_str().unwrap()], &netrc).assert().success();
    command(&["verify", scene.repo().to_str().unwrap()], &netrc).assert().success();
}
