import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
import "../../react/src/styles.css";
import "../shared/frame.css";
import { App } from "./app.js";

const locale = navigator.language || "en";
document.documentElement.lang = locale.toLowerCase().startsWith("nl") ? "nl" : "en";
const root = document.getElementById("root");
if (root !== null) {
  createRoot(root).render(
    <StrictMode>
      <App locale={locale} />
    </StrictMode>,
  );
}
