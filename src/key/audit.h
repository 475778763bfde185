/*
 * audit.h
 *		The events of a key.
 */
#ifndef AUDIT_H
#define AUDIT_H

extern bool audit_tells_end_user(void);
extern void audit_mend_numbers(void *arg);

#endif
