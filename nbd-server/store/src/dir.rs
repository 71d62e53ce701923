//! A repository in a directory: objects enter it whole or not at all.
