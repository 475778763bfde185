-- For servers that speak HTTP: a client's address, and the response to a verdict.

CREATE FUNCTION rk_apikeys.client_addr(header text) RETURNS inet
  LANGUAGE C IMMUTABLE STRICT PARALLEL SAFE
  AS 'MODULE_PATHNAME', 'rk_apikeys_client_addr';
COMMENT ON FUNCTION rk_apikeys.client_addr(text) IS
  'The address that the text of a header names, as a host. Drops blanks around it, a port, brackets and a zone. Returns an IPv4-mapped address as IPv4. NULL for anything else, a list of addresses too. Never raises an error.';

-- A scope or a name goes into a header only if no character of it ends the
-- value.  E'' strings mean the same whatever standard_conforming_strings is.
CREATE FUNCTION rk_apikeys.http_response(verdict rk_apikeys.verdict, scope text DEFAULT NULL,
    OUT status integer, OUT headers jsonb, OUT body jsonb) RETURNS record
  LANGUAGE sql IMMUTABLE PARALLEL SAFE
BEGIN ATOMIC
  SELECT r.status,
      jsonb_strip_nulls(jsonb_build_object(
        'Content-Type', CASE WHEN r.status <> 200 THEN 'application/problem+json' END,
        'Cache-Control', CASE WHEN r.status <> 200 THEN 'no-store' END,
        'WWW-Authenticate', CASE
          WHEN r.status = 401 THEN 'Bearer' || CASE WHEN r.code IS NULL THEN '' ELSE ' error="invalid_token"' END
          WHEN r.code = 'scope_missing' THEN 'Bearer error="insufficient_scope"'
            || coalesce(', scope="' || r.scope || '"', '') END,
        'Retry-After', CASE WHEN r.status IN (429, 503) THEN r.wait::text END,
        'RateLimit-Policy', r.limit_name || ';q=' || r.units,
        'RateLimit', r.limit_name || ';r=' || r.remaining
          || coalesce(CASE WHEN r.status = 429 THEN ';t=' || r.wait END, ''))),
      CASE WHEN r.status <> 200 THEN jsonb_strip_nulls(jsonb_build_object(
        'type', 'about:blank', 'status', r.status, 'code', r.code,
        'title', CASE r.status WHEN 401 THEN 'Unauthorized' WHEN 403 THEN 'Forbidden'
          WHEN 429 THEN 'Too Many Requests' ELSE 'Service Unavailable' END,
        'detail', CASE r.status
          WHEN 401 THEN CASE WHEN r.code IS NULL THEN 'The request has no API key.' ELSE 'The API key is not accepted.' END
          WHEN 403 THEN CASE r.code WHEN 'scope_missing' THEN 'The API key lacks a scope that the request needs.'
            ELSE 'The API key is not accepted from this address.' END
          WHEN 429 THEN CASE r.code WHEN 'quota_exceeded' THEN 'The quota of the API key is used up.'
            ELSE 'The API key has used up its limit.' END
          ELSE 'The limit of the API key cannot be checked now.' END)) END
    FROM (SELECT verdict.code,
        CASE WHEN verdict.valid THEN 200
          WHEN verdict.code IN ('scope_missing', 'address_denied') THEN 403
          WHEN verdict.code IN ('rate_limited', 'quota_exceeded') THEN 429
          WHEN verdict.code = 'limiter_unavailable' THEN 503
          ELSE 401 END AS status,
        -- RFC 6750: the list's characters.
        CASE WHEN octet_length(http_response.scope) <= 8192 THEN
          substring(http_response.scope FROM E'^[\\x21\\x23-\\x5b\\x5d-\\x7e]+(?: [\\x21\\x23-\\x5b\\x5d-\\x7e]+)*$') END AS scope,
        -- RFC 9651: a string, and integers of 15 digits.
        CASE WHEN octet_length(verdict.limit_name) <= 200 AND verdict.limit_name ~ E'^[\\x20-\\x7e]+$' THEN
          '"' || regexp_replace(verdict.limit_name, E'(["\\\\])', E'\\\\\\1', 'g') || '"' END AS limit_name,
        CASE WHEN verdict.limit_units >= 0 THEN least(verdict.limit_units, 999999999999999) END AS units,
        CASE WHEN verdict.limit_remaining >= 0 THEN least(verdict.limit_remaining, 999999999999999) END AS remaining,
        -- Whole seconds, rounded up. A quota without end comes back at no time.
        (CASE WHEN verdict.retry_after_ms IS NOT NULL THEN greatest(verdict.retry_after_ms, 0)
          WHEN verdict.code = 'limiter_unavailable' THEN 1000 END + 999::bigint) / 1000 AS wait) r;
END;
COMMENT ON FUNCTION rk_apikeys.http_response(rk_apikeys.verdict, text) IS
  'The response of an HTTP server to a verdict. scope: as it was given to verify_key. status: 200, 401, 403, 429 or 503. headers: an object of WWW-Authenticate (RFC 6750), Retry-After, RateLimit and RateLimit-Policy. A quota without end has no Retry-After. body: problem details (RFC 9457); NULL with 200. Without a verdict, that is for a request without a token, the status is 401.';
