//! cwrun
fn main() {}
