//! The demo upstream alone: `faregate-sim [address]`, on 127.0.0.1:8081 when none is given.

use std::net::SocketAddr;

use faregate_sim::upstream;

#[tokio::main(flavor = "current_thread")]
async fn main() -> std::io::Result<()> {
    let address = std::env::args().nth(1).unwrap_or_else(|| "127.0.0.1:8081".to_owned());
    let address: SocketAddr = address.parse().map_err(std::io::Error::other)?;
    let upstream = upstream::bind(address).await?;
    println!("{}", upstream.addr());
    upstream
        .run(async {
            // Without a handler, ending it is the shell's business.
            let _ = tokio::signal::ctrl_c().await;
        })
        .await;
    Ok(())
}
