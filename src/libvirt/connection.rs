//! Calls to libvirt, which block, on threads of their own.

use tokio::task::spawn_blocking;
use virt::connect::Connect;
use virt::error::ErrorNumber;

use super::{Error, Uri};

/// A connection to libvirt. It is closed with its last clone.
#[derive(Debug, Clone)]
pub(super) struct Connection(Connect);

impl Connection {
    pub(super) async fn open(uri: &Uri) -> Result<Self, Error> {
        // Errors are told by whoever called, not by the library.
        virt::error::clear_error_callback();
        let asked = uri.clone();
        let opened = spawn_blocking(move || Connect::open(Some(asked.as_str()))).await.map_err(|_| Error::Task)?;
        let connect = opened.map_err(|error| Error::Connect { uri: uri.clone(), words: error.message().to_owned() })?;
        Ok(Self(connect))
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

    /// Whether a domain of this name runs.
    pub(super) async fn runs(&self, name: &str) -> Result<bool, Error> {
        let name = name.to_owned();
        self.call("look for the domain", move |connect| match connect.lookup_domain_by_name(&name) {
            // It may end between the two.
            Ok(domain) => domain.is_active().or_else(|error| gone(error).map(|()| false)),
            Err(error) => gone(error).map(|()| false),
        })
        .await
    }

    /// Ends a domain at once, if it is there.
    pub(super) async fn destroy(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.call("end the domain", move |connect| match connect.lookup_domain_by_name(&name) {
            Ok(domain) => domain.destroy().or_else(gone),
            Err(error) => gone(error),
        })
        .await
    }

    async fn call<T: Send + 'static>(
        &self,
        what: &'static str,
        call: impl FnOnce(&Connect) -> Result<T, virt::error::Error> + Send + 'static,
    ) -> Result<T, Error> {
        let connect = self.0.clone();
        let called = spawn_blocking(move || call(&connect)).await.map_err(|_| Error::Task)?;
        called.map_err(|error| Error::Refused { what, words: error.message().to_owned() })
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
