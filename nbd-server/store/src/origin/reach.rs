//! Where hosts are: this one, those of its network, and the open network, whose servers may not send a reader inside.

use std::net::IpAddr;

use url::{Host, Url};

/// Whether a server on the open network, at `from`, names a place that only this host or its network reaches: `to` would
/// be asked by someone whom it trusts. Hosts are judged as they are written; names are not looked up.
pub(crate) fn leads_inside(from: &Url, to: &Url) -> bool {
    !is_inside(from) && is_inside(to)
}

/// Whether a host, as it stands in a URL, is the one that this program runs on.
pub(super) fn is_this_host(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
    address.map_or(host == "localhost", |address| address.is_loopback())
}

fn is_inside(url: &Url) -> bool {
    /// Names that no public server has: of this host, of multicast DNS, and of private networks by convention.
    const INSIDE: [&str; 4] = ["localhost", "local", "internal", "home.arpa"];
    match url.host() {
        Some(Host::Domain(name)) => {
            let name = name.trim_end_matches('.');
            let below =
                |suffix: &&str| name.strip_suffix(*suffix).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
            !name.contains('.') || INSIDE.iter().any(below)
        }
        Some(Host::Ipv4(address)) => is_inside_v4(address),
        Some(Host::Ipv6(address)) => match address.to_ipv4_mapped() {
            Some(address) => is_inside_v4(address),
            None => {
                address.is_loopback()
                    || address.is_unspecified()
                    || address.is_unique_local()
                    || address.is_unicast_link_local()
            }
        },
        None => false,
    }
}

const fn is_inside_v4(address: std::net::Ipv4Addr) -> bool {
    // 100.64.0.0/10 is shared by the customers of a provider (RFC 6598).
    let [first, second, ..] = address.octets();
    let shared = first == 100 && second & 0xc0 == 64;
    address.is_loopback() || address.is_private() || address.is_link_local() || address.is_unspecified() || shared
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_host_is_known_by_its_names() {
        for this in ["localhost", "127.0.0.1", "127.9.9.9", "[::1]"] {
            assert!(is_this_host(this), "{this}");
        }
        for other in ["localhost.example.org", "10.0.0.1", "0.0.0.0", "[fe80::1]", "a.localhost", ""] {
            assert!(!is_this_host(other), "{other}");
        }
    }

    #[test]
    fn the_open_network_does_not_lead_inside() {
        let leads = |from: &str, to: &str| leads_inside(&from.parse().unwrap(), &to.parse().unwrap());
        for inside in [
            "http://127.0.0.1/",
            "http://0x7f.1:631/",
            "http://2130706433/",
            "http://0/",
            "http://10.1.2.3/",
            "http://192.168.0.1/",
            "http://169.254.169.254/",
            "http://100.100.0.1/",
            "http://[::1]/",
            "http://[::ffff:10.0.0.1]/",
            "http://[fe80::1]/",
            "http://[fd00::1]/",
            "http://localhost:8080/",
            "http://LOCALHOST./",
            "http://a.localhost/",
            "http://printer.local/",
            "http://metadata.google.internal/",
            "http://intranet/",
        ] {
            assert!(leads("https://vms.example.org/a", inside), "{inside}");
            assert!(!leads("http://192.168.7.1/a", inside), "{inside}");
            assert!(!leads(inside, "https://vms.example.org/"), "{inside}");
        }
        for outside in
            ["https://vms.example.org/", "http://8.8.8.8/", "http://[2001:db8::1]/", "http://mylocalhost.org/"]
        {
            assert!(!leads("https://vms.example.org/a", outside), "{outside}");
        }
    }
}
