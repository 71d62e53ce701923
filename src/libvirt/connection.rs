//! Calls to libvirt, which block, on threads of their own.

use std::time::SystemTime;

use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep};
use virt::connect::Connect;
use virt::error::ErrorNumber;
use vmnetx_store::failure::describe;

use super::limits::{RETURN_DEADLINE, RETURN_LOOK};
use super::{Error, Uri};

/// A connection to libvirt, made anew when its daemon has gone and come back. It is closed with its last clone.
#[derive(Debug, Clone)]
pub(super) struct Connection {
    uri: Uri,
    connect: Connect,
}

impl Connection {
    pub(super) async fn open(uri: &Uri) -> Result<Self, Error> {
        // Errors are told by whoever called, not by the library.
        virt::error::clear_error_callback();
        let asked = uri.clone();
        let opened = spawn_blocking(move || Connect::open(Some(asked.as_str()))).await.map_err(|_| Error::Task)?;
        let connect = opened.map_err(|error| Error::Connect { uri: uri.clone(), words: error.message().to_owned() })?;
        Ok(Self { uri: uri.clone(), connect })
    }

    /// The user that machines run as, where that is another one than the daemon.
    pub(super) async fn machine_user(&self) -> Result<Option<u32>, Error> {
        let text = self.call("tell what it can do", Connect::capabilities).await?;
        Ok(machine_user(&text))
    }

    /// Starts a domain that is gone when it ends.
    pub(super) async fn boot(&self, xml: String) -> Result<(), Error> {
        self.call("start the domain", move |connect| connect.create_domain_xml(&xml, 0).map(drop)).await
    }

    /// Continues a saved domain; returns when the guest runs.
    pub(super) async fn restore(&self, path: String) -> Result<(), Error> {
        self.call("restore the saved domain", move |connect| connect.restore_domain(&path)).await
    }

    /// Has the agent in a domain's guest set its clock to this host's time.
    pub(super) async fn set_clock(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call("set the guest's clock", move |connect| {
            let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
            let nanos = since_1970.subsec_nanos().cast_signed();
            connect.lookup_domain_by_name(&name)?.set_time(since_1970.as_secs().cast_signed(), nanos, 0)
        })
        .await
    }

    /// Whether a domain of this name runs.
    pub(super) async fn runs(&mut self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.call_again("look for the domain", move |connect| match connect.lookup_domain_by_name(&name) {
            // It may end between the two.
            Ok(domain) => domain.is_active().or_else(|error| gone(error).map(|()| false)),
            Err(error) => gone(error).map(|()| false),
        })
        .await
    }

    /// Ends a domain at once, if it is there.
    pub(super) async fn destroy(&mut self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call_again("end the domain", move |connect| match connect.lookup_domain_by_name(&name) {
            Ok(domain) => domain.destroy().or_else(gone),
            Err(error) => gone(error),
        })
        .await
    }

    /// Makes a call that may be made twice, again when the daemon goes and comes back within [`RETURN_DEADLINE`].
    async fn call_again<T: Send + 'static>(
        &mut self,
        what: &'static str,
        call: impl Fn(&Connect) -> Result<T, virt::error::Error> + Clone + Send + 'static,
    ) -> Result<T, Error> {
        let mut lost_at = None;
        loop {
            let lost = match self.call(what, call.clone()).await {
                Err(error @ Error::Lost { .. }) => error,
                called => return called,
            };
            if lost_at.is_none() {
                tracing::warn!("{}; it is waited for", describe(&lost));
            }
            let since = *lost_at.get_or_insert_with(Instant::now);
            loop {
                if since.elapsed() >= RETURN_DEADLINE {
                    return Err(lost);
                }
                sleep(RETURN_LOOK).await;
                if let Ok(again) = Self::open(&self.uri).await {
                    tracing::info!("libvirt is back");
                    *self = again;
                    break;
                }
            }
        }
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let connect = self.connect.clone();
        let called = spawn_blocking(move || {
            call(&connect).map_err(|error| {
                let words = error.message().to_owned();
                // libvirt's words and numbers for a daemon that has gone are many.
                if connect.is_alive().unwrap_or(false) {
                    Error::Refused { what, words }
                } else {
                    Error::Lost { what, words }
                }
            })
        });
        called.await.map_err(|_| Error::Task)?
    }
}

/// Nothing if an error says that there is no such domain.
fn gone(error: virt::error::Error) -> Result<(), virt::error::Error> {
    if error.code().is(ErrorNumber::NoDomain) { Ok(()) } else { Err(error) }
}

/// The user of machines in libvirt's account of itself: the base label of the security model `dac`, `+UID:+GID`.
fn machine_user(capabilities: &str) -> Option<u32> {
    let (_, model) = capabilities.split_once("<model>dac</model>")?;
    let (_, label) = model.split_once("<baselabel")?;
    let (_, label) = label.split_once('>')?;
    label.split(':').next()?.trim_start_matches('+').parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_user_of_machines_is_the_label_of_dac() {
        let model = |name: &str, label: &str| {
            format!("<secmodel><model>{name}</model><doi>0</doi><baselabel type='kvm'>{label}</baselabel></secmodel>")
        };
        let both = model("selinux", "system_u:system_r:svirt_t:s0") + &model("dac", "+64055:+108");
        assert_eq!(machine_user(&both), Some(64055));
        assert_eq!(machine_user(&model("dac", "+0:+0")), Some(0));
        assert_eq!(machine_user(&model("apparmor", "x")), None);
    }
}
