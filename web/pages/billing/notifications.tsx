import { formatDateTime, useFaregate, useNotifications } from "@faregate/react";
import { Answer, Section } from "../../react/src/components/parts.js";
import type { PageTexts } from "./texts.js";

export function NotificationList({ texts }: { texts: PageTexts }) {
  const query = useNotifications();
  const { locale } = useFaregate();
  return (
    <Section
      title={texts.notifications}
      className="notifications"
      actions={
        query.unread > 0 && (
          <button type="button" className="fg-button" onClick={() => void query.markRead().catch(query.reload)}>
            {texts.markAllRead}
          </button>
        )
      }
    >
      <Answer query={query}>
        {({ data }) =>
          data.length === 0 ? (
            <p className="fg-empty">{texts.notificationsEmpty}</p>
          ) : (
            <ul className="items">
              {data.map((one) => (
                <li key={one.id}>
                  <span className={one.read_at === null ? "what unread" : "what"}>{texts.notification(one.kind)}</span>
                  <time className="soft" dateTime={one.created_at}>
                    {formatDateTime(one.created_at, locale)}
                  </time>
                </li>
              ))}
            </ul>
          )
        }
      </Answer>
    </Section>
  );
}
