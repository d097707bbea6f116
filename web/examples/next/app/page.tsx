import { CreditsDisplay, FaregateProvider } from "@faregate/react";
import { Chat } from "./chat";

export default function Page() {
  return (
    <FaregateProvider baseUrl="/api/faregate" locale="en">
      <main className="chat">
        <header>
          <h1>Chat</h1>
          <CreditsDisplay compact />
        </header>
        <Chat />
      </main>
    </FaregateProvider>
  );
}
