-- examples/postgrest/check_request.sql: API keys for PostgREST, from version 11 on: the function that PostgREST runs before each request.
--
-- Run it once, as the owner of the database, after ../records.sql. Then write into postgrest.conf:
--   db-uri = "postgres://authenticator@/..."
--   db-schemas = "public"
--   db-anon-role = "records_api"
--   db-pre-request = "public.check_request"
--
-- Clients send the token as X-API-Key, because PostgREST takes a Bearer token for a JWT. PostgREST does not tell SQL who its client is.
-- Only X-Real-IP does, as your own proxy sets it. Nobody but this proxy may reach PostgREST: server-host = "127.0.0.1".

CREATE ROLE authenticator LOGIN NOINHERIT;
GRANT records_api TO authenticator;

-- Authenticates the request. The key is the principal until the transaction ends, so also in the request's own query.
CREATE FUNCTION public.check_request() RETURNS void LANGUAGE plpgsql AS $$
DECLARE
  request CONSTANT jsonb := current_setting('request.headers', true);
  token CONSTANT text := request->>'x-api-key';
  scope CONSTANT text := CASE WHEN current_setting('request.method', true) IN ('GET', 'HEAD') THEN 'records:read' ELSE 'records:write' END;
  answer record;
BEGIN
  SELECT v.valid, r.status, r.headers, r.body INTO answer
  FROM rk_apikeys.authenticate(token, scope, rk_apikeys.client_addr(request->>'x-real-ip'), raise => false) v,
    rk_apikeys.http_response(CASE WHEN token IS NOT NULL THEN v END, scope) r;

  IF answer.valid THEN
    PERFORM set_config('response.headers', (SELECT coalesce(jsonb_agg(jsonb_build_object(key, value)), '[]') FROM jsonb_each(answer.headers))::text, true);
  ELSE
    -- PostgREST makes the response of it, with a body and a Content-Type of its own.
    RAISE SQLSTATE 'PGRST' USING
      MESSAGE = jsonb_build_object('code', coalesce(answer.body->>'code', 'no_key'), 'message', answer.body->>'title', 'details', answer.body->>'detail'),
      DETAIL = jsonb_build_object('status', answer.status, 'headers', answer.headers - 'Content-Type');
  END IF;
END
$$;
REVOKE ALL ON FUNCTION public.check_request() FROM PUBLIC;
GRANT EXECUTE ON FUNCTION public.check_request() TO records_api;
