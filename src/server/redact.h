/*
 * redact.h
 *		Tokens are kept out of the server log and of pg_stat_activity.
 */
#ifndef REDACT_H
#define REDACT_H

extern void redact_init(void);

#endif
